// Makes calls with net/http: `client`, the calls as JSON on standard input. One line of JSON per
// answer. See test_clients_matrix.py for what is in a call.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"strings"
	"time"
)

type part struct {
	Name, Filename, Content, Type string
}

type call struct {
	Name, Method, URL string
	Headers           map[string]string
	JSON              json.RawMessage
	Form              map[string]string
	Multipart         []part
	Chunks            []string
	Body              string
}

type given struct {
	Calls  []call
	Socket string
}

type answer struct {
	Name    string      `json:"name"`
	Status  int         `json:"status"`
	Headers [][2]string `json:"headers"`
	Body    []byte      `json:"body"`
}

// content is the body of a call and its type, as a program would make them.
func content(c call) (io.Reader, string) {
	switch {
	case c.JSON != nil:
		return bytes.NewReader(c.JSON), "application/json"
	case c.Form != nil:
		values := url.Values{}
		for name, value := range c.Form {
			values.Set(name, value)
		}
		return strings.NewReader(values.Encode()), "application/x-www-form-urlencoded"
	case c.Multipart != nil:
		var body bytes.Buffer
		form := multipart.NewWriter(&body)
		for _, p := range c.Multipart {
			head := textproto.MIMEHeader{}
			head.Set("Content-Disposition",
				fmt.Sprintf("form-data; name=%q; filename=%q", p.Name, p.Filename))
			head.Set("Content-Type", p.Type)
			w, err := form.CreatePart(head)
			check(err)
			_, err = io.WriteString(w, p.Content)
			check(err)
		}
		check(form.Close())
		return &body, form.FormDataContentType()
	case c.Chunks != nil:
		// Of a type whose length net/http does not know, so it goes in chunks.
		return io.MultiReader(strings.NewReader(strings.Join(c.Chunks, ""))), ""
	case c.Body != "":
		return strings.NewReader(c.Body), ""
	}
	return nil, ""
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	var input given
	check(json.NewDecoder(os.Stdin).Decode(&input))
	client := &http.Client{
		Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	if input.Socket != "" {
		client.Transport = &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", input.Socket)
			},
		}
	}
	out := json.NewEncoder(os.Stdout)
	for _, c := range input.Calls {
		body, kind := content(c)
		request, err := http.NewRequest(c.Method, c.URL, body)
		check(err)
		if kind != "" {
			request.Header.Set("Content-Type", kind)
		}
		for name, value := range c.Headers {
			request.Header.Set(name, value)
		}
		got, err := client.Do(request)
		check(err)
		data, err := io.ReadAll(got.Body)
		check(err)
		got.Body.Close()
		seen := answer{Name: c.Name, Status: got.StatusCode, Body: data}
		for name, values := range got.Header {
			for _, value := range values {
				seen.Headers = append(seen.Headers, [2]string{name, value})
			}
		}
		check(out.Encode(seen))
	}
}
