package main

import (
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseWrk(t *testing.T) {
	const good = `Running 3s test @ http://10.99.0.3:8080/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   211.52us  506.24us  10.41ms   96.12%
    Req/Sec    88.70k     4.11k   94.34k    80.00%
  Latency Distribution
     50%  107.00us
     75%  203.00us
     90%  392.00us
     99%    1.85ms
  264633 requests in 3.00s, 83.29MB read
Requests/sec:  88181.51
Transfer/sec:     27.75MB
`
	got, err := parseWrk(good)
	want := loaded{requests: 264633, seconds: 3, p50: 107 * time.Microsecond, p99: 1850 * time.Microsecond}
	if err != nil || got != want {
		t.Errorf("parseWrk = %+v, %v; want %+v", got, err, want)
	}
	for name, bad := range map[string]string{
		"a failed answer": good + "  Non-2xx or 3xx responses: 4\n",
		"a reset":         good + "  Socket errors: connect 0, read 3, write 0, timeout 0\n",
		"no answer":       strings.Replace(good, "264633", "0", 1),
		"nothing":         "",
	} {
		if got, err := parseWrk(bad); err == nil {
			t.Errorf("%s: parseWrk = %+v, want an error", name, got)
		}
	}
}

func TestConclude(t *testing.T) {
	r := newResults(config{})
	for i, sample := range []struct{ reference, ours float64 }{{10, 5}, {20, 30}, {40, 10}} {
		r.add("w", "haproxy", "f", sample.reference)
		r.add("w", "tulle", "f", sample.ours)
		if i == 0 {
			r.add("w", "tulle", "only ours", 1)
		}
	}
	r.conclude()
	x := r.find("w", "tulle", "f")
	if x.Median != 10 || x.Low != 5 || x.High != 30 {
		t.Errorf("median %v, low %v, high %v", x.Median, x.Low, x.High)
	}
	if ratio := x.Ratios["haproxy"]; ratio != 0.5 { // of 0.5, 1.5, 0.25
		t.Errorf("ratio %v, want the median of each round's, 0.5", ratio)
	}
	if only := r.find("w", "tulle", "only ours"); only.Ratios != nil {
		t.Errorf("ratios %v of a figure that the references lack", only.Ratios)
	}
}

func TestParse(t *testing.T) {
	c, err := parse([]string{"memory", "--quick", "start", "--peers", "tulle,direct"}, "bin")
	if err != nil || !slices.Equal(c.works, []string{"memory", "start"}) || !c.quick || c.rounds != 3 ||
		!slices.Equal(c.chosenPeers(), []string{"tulle", "direct"}) {
		t.Errorf("parse = %+v, %v", c, err)
	}
	for _, bad := range [][]string{{"nothing"}, {"--peers", "nobody"}} {
		if _, err := parse(bad, "bin"); err == nil || !strings.Contains(err.Error(), "there are") {
			t.Errorf("parse(%q): %v, want an error that lists what there is", bad, err)
		}
	}
}

func TestOwnProcessIsMeasured(t *testing.T) {
	m, err := memoryOf(os.Getpid())
	if err != nil || m.anon <= 0 || m.rss() <= m.anon {
		t.Errorf("memoryOf = %+v, %v", m, err)
	}
	if _, err := cpu([]int{os.Getpid()}); err != nil {
		t.Error(err)
	}
}

// TestBackendAnswersEachRequestOnce sends heads cut at every place.
func TestBackendAnswersEachRequestOnce(t *testing.T) {
	const request = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
	for cut := range len(request) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			answerAll(server)
		}()
		done := make(chan error, 1)
		go func() {
			defer close(done)
			for _, part := range []string{request[:cut], request[cut:]} {
				if _, err := client.Write([]byte(part)); err != nil {
					done <- err
				}
			}
		}()
		got := make([]byte, len(answer))
		if _, err := client.Read(got); err != nil || string(got) != string(answer) {
			t.Fatalf("cut at %d: %q, %v", cut, got, err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		client.Close()
	}
}
