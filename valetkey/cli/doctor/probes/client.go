// A call of each URL with net/http's default transport; one line of JSON per call.
// Built and run by the doctor. Arguments: seconds per call, URLs.
package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

const most = 4096

type report struct {
	Client      string `json:"client"`
	URL         string `json:"url"`
	Status      int    `json:"status,omitempty"`
	ContentType string `json:"content_type,omitempty"`
	Via         string `json:"via,omitempty"`
	Body        string `json:"body,omitempty"`
	Error       string `json:"error,omitempty"`
}

func call(client *http.Client, url string) report {
	seen := report{Client: "net/http", URL: url}
	answer, err := client.Get(url)
	if err != nil {
		seen.Error = err.Error()
		return seen
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, most))
	if err != nil {
		seen.Error = err.Error()
		return seen
	}
	seen.Status = answer.StatusCode
	seen.ContentType = answer.Header.Get("Content-Type")
	seen.Via = answer.Header.Get("Via")
	seen.Body = string(body)
	return seen
}

func main() {
	seconds, err := strconv.ParseFloat(os.Args[1], 64)
	if err != nil {
		panic(err)
	}
	client := &http.Client{
		Timeout: time.Duration(seconds * float64(time.Second)),
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	out := json.NewEncoder(os.Stdout)
	for _, url := range os.Args[2:] {
		if err := out.Encode(call(client, url)); err != nil {
			panic(err)
		}
	}
}
