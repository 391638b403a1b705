// Makes calls with java.net.http.HttpClient: `java Client`, a call per line on standard input,
// its parts in base64 divided by spaces: name, method, URL, kind of body, body, then headers by name
// and value. One line per answer: name, status, body, headers.
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Base64;
import java.util.List;
import java.util.Map;

public class Client {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newBuilder()
            .version(HttpClient.Version.HTTP_1_1)
            .followRedirects(HttpClient.Redirect.NEVER)
            .build();
        BufferedReader calls = new BufferedReader(new InputStreamReader(System.in));
        for (String line = calls.readLine(); line != null; line = calls.readLine()) {
            String[] part = line.split(" ", -1);
            HttpRequest.Builder call = HttpRequest.newBuilder(URI.create(text(part[2])))
                .timeout(Duration.ofSeconds(30))
                .method(text(part[1]), publisher(text(part[3]), part[4]));
            for (int at = 5; at < part.length; at += 2) {
                call.header(text(part[at]), text(part[at + 1]));
            }
            HttpResponse<byte[]> got = client.send(call.build(), HttpResponse.BodyHandlers.ofByteArray());
            StringBuilder seen = new StringBuilder(part[0]).append(' ').append(got.statusCode())
                .append(' ').append(base64(got.body()));
            for (Map.Entry<String, List<String>> field : got.headers().map().entrySet()) {
                for (String value : field.getValue()) {
                    seen.append(' ').append(base64(field.getKey().getBytes(StandardCharsets.UTF_8)))
                        .append(' ').append(base64(value.getBytes(StandardCharsets.UTF_8)));
                }
            }
            System.out.println(seen);
        }
        System.exit(0);
    }

    private static HttpRequest.BodyPublisher publisher(String kind, String body) {
        byte[] content = Base64.getDecoder().decode(body);
        switch (kind) {
            case "none":
                return HttpRequest.BodyPublishers.noBody();
            case "chunks":
                // Of unknown length, so it goes in chunks.
                return HttpRequest.BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(content));
            default:
                return HttpRequest.BodyPublishers.ofByteArray(content);
        }
    }

    private static String text(String encoded) {
        return new String(Base64.getDecoder().decode(encoded), StandardCharsets.UTF_8);
    }

    private static String base64(byte[] plain) {
        return Base64.getEncoder().encodeToString(plain);
    }
}
