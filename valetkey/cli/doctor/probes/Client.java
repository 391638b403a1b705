// A call of each URL with java.net.http.HttpClient; one line of JSON per call.
// Run by the doctor as `java Client.java`. Arguments: seconds per call, URLs.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;

public class Client {
    private static final int MOST = 4096;

    public static void main(String[] arguments) {
        Duration limit = Duration.ofMillis((long) (Double.parseDouble(arguments[0]) * 1000));
        HttpClient client = HttpClient.newBuilder()
            .version(HttpClient.Version.HTTP_1_1)
            .followRedirects(HttpClient.Redirect.NEVER)
            .connectTimeout(limit)
            .build();
        for (int index = 1; index < arguments.length; index++) {
            String url = arguments[index];
            StringBuilder line = new StringBuilder("{\"client\":\"HttpClient\"");
            put(line, "url", url);
            try {
                HttpRequest request = HttpRequest.newBuilder(URI.create(url)).timeout(limit).build();
                HttpResponse<String> answer =
                    client.send(request, HttpResponse.BodyHandlers.ofString());
                line.append(",\"status\":").append(answer.statusCode());
                put(line, "content_type", answer.headers().firstValue("content-type").orElse(""));
                put(line, "via", answer.headers().firstValue("via").orElse(""));
                // No body where a proxy refused the tunnel.
                String body = answer.body() == null ? "" : answer.body();
                put(line, "body", body.substring(0, Math.min(body.length(), MOST)));
            } catch (Exception error) {
                put(line, "error", words(error));
            }
            System.out.println(line.append('}'));
        }
        // The client's threads would keep the machine running for a while.
        System.exit(0);
    }

    private static String words(Throwable error) {
        StringBuilder said = new StringBuilder();
        for (int depth = 0; error != null && depth < 6; depth++, error = error.getCause()) {
            if (said.length() > 0) {
                said.append(": ");
            }
            said.append(error.getClass().getSimpleName());
            if (error.getMessage() != null) {
                said.append(' ').append(error.getMessage());
            }
        }
        return said.toString();
    }

    private static void put(StringBuilder line, String name, String value) {
        line.append(",\"").append(name).append("\":\"");
        for (char each : value.toCharArray()) {
            if (each == '"' || each == '\\') {
                line.append('\\').append(each);
            } else if (each < ' ' || each > '~') {
                line.append(String.format("\\u%04x", (int) each));
            } else {
                line.append(each);
            }
        }
        line.append('"');
    }
}
