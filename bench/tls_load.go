// A closed loop over TLS: some connections, one call after the other on each, for some seconds.
//
// wrk speaks no CONNECT. This does, and is otherwise as plain: the same bytes for every call, one
// thread. A connection is made and verified once, so what is measured is calls, not handshakes.
// Prints the summary as one line of JSON, as load.lua does, and what was negotiated.
package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"runtime"
	"sort"
	"strconv"
	"sync"
	"time"
)

type options struct {
	address, tunnel, name string
	request               []byte
	roots                 *x509.CertPool
	until                 time.Time
}

// What one connection saw. Times in nanoseconds.
type seen struct {
	latencies      []int64
	not2xx, broken int
	suite          string
}

func main() {
	runtime.GOMAXPROCS(1)
	address := flag.String("address", "", "host:port to connect to")
	tunnel := flag.String("connect", "", "host:port to ask a forward proxy for (CONNECT)")
	name := flag.String("name", "localhost", "the server's name (SNI, certificate)")
	ca := flag.String("ca", "", "PEM file with what the certificate must come from")
	path := flag.String("path", "/", "path of every call")
	authorization := flag.String("authorization", "", "Authorization of every call")
	connections := flag.Int("connections", 32, "connections")
	seconds := flag.Float64("seconds", 5, "how long")
	flag.Parse()

	pem, err := os.ReadFile(*ca)
	roots := x509.NewCertPool()
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		fmt.Fprintln(os.Stderr, "no certificate in -ca:", err)
		os.Exit(2)
	}
	host := *name
	if *tunnel != "" {
		host = *tunnel
	}
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\n", *path, host)
	if *authorization != "" {
		request += fmt.Sprintf("Authorization: %s\r\n", *authorization)
	}
	started := time.Now()
	load := options{
		address: *address, tunnel: *tunnel, name: *name, roots: roots,
		request: []byte(request + "\r\n"),
		until:   started.Add(time.Duration(*seconds * float64(time.Second))),
	}
	results := make([]seen, *connections)
	var all sync.WaitGroup
	for i := range results {
		all.Add(1)
		go func(result *seen) {
			defer all.Done()
			if err := run(&load, result); err != nil {
				result.broken++
				fmt.Fprintln(os.Stderr, err)
			}
		}(&results[i])
	}
	all.Wait()
	report(results, time.Since(started))
}

// run makes one connection and calls until time is up. An error ends it: it is counted once, and
// the fewer connections show in the rate.
func run(load *options, result *seen) error {
	raw, err := net.DialTimeout("tcp", load.address, 5*time.Second)
	if err != nil {
		return err
	}
	defer raw.Close()
	// Answers that come late must not keep the benchmark from ending.
	if err := raw.SetDeadline(load.until.Add(10 * time.Second)); err != nil {
		return err
	}
	if load.tunnel != "" {
		if err := connect(raw, load.tunnel); err != nil {
			return err
		}
	}
	connection := tls.Client(raw, &tls.Config{ServerName: load.name, RootCAs: load.roots})
	if err := connection.Handshake(); err != nil {
		return err
	}
	state := connection.ConnectionState()
	result.suite = tls.CipherSuiteName(state.CipherSuite)
	answers := bufio.NewReaderSize(connection, 16<<10)
	for begun := time.Now(); begun.Before(load.until); {
		if _, err := connection.Write(load.request); err != nil {
			return err
		}
		good, err := answer(answers)
		if err != nil {
			return err
		}
		now := time.Now()
		if !good {
			result.not2xx++
		}
		result.latencies = append(result.latencies, int64(now.Sub(begun)))
		begun = now
	}
	return nil
}

// connect asks for the tunnel and reads its answer, byte by byte: what follows it is not ours.
func connect(raw net.Conn, target string) error {
	if _, err := fmt.Fprintf(raw, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		return err
	}
	var head []byte
	for one := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); {
		if _, err := io.ReadFull(raw, one); err != nil {
			return err
		}
		head = append(head, one[0])
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) {
		return fmt.Errorf("CONNECT: %q", head)
	}
	return nil
}

// answer reads one sized answer and says whether it was a 2xx.
func answer(from *bufio.Reader) (bool, error) {
	line, err := from.ReadSlice('\n')
	if err != nil {
		return false, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return false, fmt.Errorf("no answer: %q", line)
	}
	good, length := line[9] == '2', -1
	for {
		if line, err = from.ReadSlice('\n'); err != nil {
			return false, err
		}
		name, value, _ := bytes.Cut(textproto.TrimBytes(line), []byte(":"))
		if len(name) == 0 {
			break
		}
		if bytes.EqualFold(name, []byte("content-length")) {
			if length, err = strconv.Atoi(string(textproto.TrimBytes(value))); err != nil {
				return false, err
			}
		}
	}
	if length < 0 {
		return false, fmt.Errorf("no Content-Length")
	}
	_, err = from.Discard(length)
	return good, err
}

func report(results []seen, took time.Duration) {
	var all []int64
	total := seen{}
	for _, result := range results {
		all = append(all, result.latencies...)
		total.not2xx += result.not2xx
		total.broken += result.broken
		if result.suite != "" {
			total.suite = result.suite
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	percentile := func(share int) float64 {
		if len(all) == 0 {
			return 0
		}
		return float64(all[(len(all)*share+99)/100-1]) / 1e6 // nearest rank
	}
	line, _ := json.Marshal(map[string]any{
		"requests": len(all), "seconds": took.Seconds(),
		"p50_ms": percentile(50), "p90_ms": percentile(90), "p99_ms": percentile(99),
		"max_ms": percentile(100), "not_2xx": total.not2xx, "broken": total.broken,
		"tls": total.suite,
	})
	fmt.Println(string(line))
}
