package proxy

import (
	"bufio"
	"io"
	"net"
	"testing"
)

// pingApp answers every request head with a fixed answer, without allocating.
func pingApp(t testing.TB) net.Addr {
	return tcpApp(t, func(c *net.TCPConn) {
		answer := []byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
		b := make([]byte, 4096)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	})
}

// pinger returns a function that makes one request over addr.
func pinger(t testing.TB, addr string) func() {
	t.Helper()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	request := []byte("GET /some/path HTTP/1.1\r\nHost: server.mesh:8080\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n")
	answer := make([]byte, len("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"))
	r := bufio.NewReader(c)
	return func() {
		if _, err := c.Write(request); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, answer); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHTTPAllocations holds a request through both proxies to no allocation.
func TestHTTPAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ping := pinger(t, newTestPair(t, pingApp(t), false).addr)
	ping()
	// Pools are emptied by a collection now and then; so is the average rounded down.
	if n := testing.AllocsPerRun(2000, ping); n > 0 {
		t.Errorf("%v allocations per request", n)
	}
}

func BenchmarkHTTP(b *testing.B) {
	ping := pinger(b, newTestPair(b, pingApp(b), false).addr)
	b.ReportAllocs()
	for b.Loop() {
		ping()
	}
}
