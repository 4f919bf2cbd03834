package ends

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestBackendAnswersEachRequestOnce sends heads cut at every place.
func TestBackendAnswersEachRequestOnce(t *testing.T) {
	const request = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
	for cut := range len(request) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			answerHTTP(server)
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
		got := make([]byte, len(smallAnswer))
		if _, err := client.Read(got); err != nil || string(got) != string(smallAnswer) {
			t.Fatalf("cut at %d: %q, %v", cut, got, err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		client.Close()
	}
}

func TestRank(t *testing.T) {
	r := &Report{}
	for i := range 1000 {
		r.latencies = append(r.latencies, time.Duration(1000-i))
	}
	if r.rank(); r.P50 != 500 || r.P99 != 990 || r.P999 != 999 {
		t.Errorf("of 1 to 1000: %d, %d, %d", r.P50, r.P99, r.P999)
	}
	one := &Report{latencies: []time.Duration{7}}
	if one.rank(); one.P50 != 7 || one.P999 != 7 {
		t.Errorf("of one: %+v", one)
	}
	if none := (&Report{}); none.P50 != 0 {
		t.Errorf("of none: %+v", none)
	}
}

// TestTenthsForgetAStall: what held up everything for a tenth of a second counts
// in the p99 of the whole, and not in that of a usual tenth.
func TestTenthsForgetAStall(t *testing.T) {
	r := &Report{}
	for i := range 1000 {
		late := time.Duration(i%100 + 1)
		if i/100 == 3 {
			late += time.Second
		}
		r.latencies = append(r.latencies, late)
	}
	r.rankTenths(100)
	if r.rank(); r.TenthP99 != 99 || r.P99 < time.Second {
		t.Errorf("of a tenth %v, of the whole %v", r.TenthP99, r.P99)
	}
	few := &Report{latencies: []time.Duration{7}}
	if few.rankTenths(0); few.TenthP99 != 7 {
		t.Errorf("of one request: %v", few.TenthP99)
	}
}

// TestStallIsCharged answers nothing for a while: every request that was meant
// to be sent meanwhile has waited since then.
func TestStallIsCharged(t *testing.T) {
	table := timetable{every: time.Millisecond, count: 100}
	for since, want := range map[time.Duration]int{0: 1, 999 * time.Microsecond: 1, time.Millisecond: 2, time.Hour: 100} {
		if got := table.due(since); got != want {
			t.Errorf("after %v %d are due, want %d", since, got, want)
		}
	}
	const back = 50 * time.Millisecond // when the server answers again, all at once
	r := &Report{}
	for i := range table.due(back) {
		r.latencies = append(r.latencies, table.lateness(i, back))
	}
	if r.rank(); r.P50 != 25*time.Millisecond || r.P999 != back {
		t.Errorf("p50 %v, p99.9 %v", r.P50, r.P999)
	}
}

func TestAnswerInParts(t *testing.T) {
	whole := string(smallAnswer)
	for cut := range len(whole) {
		c := &pacedConn{}
		if done, err := c.take([]byte(whole[:cut])); done || err != nil {
			t.Fatalf("cut at %d: complete %v, %v", cut, done, err)
		}
		if done, err := c.take([]byte(whole[cut:])); !done || err != nil {
			t.Fatalf("cut at %d: complete %v, %v", cut, done, err)
		}
	}
	for _, bad := range []string{"HTTP/1.1 503 No\r\n\r\n", whole + "x", "HTTP/1.1 200 OK\r\n\r\n"} {
		if _, err := (&pacedConn{}).take([]byte(bad)); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

// TestCalls makes calls of each kind to the backend, through two relays.
func TestCalls(t *testing.T) {
	addr := listen(t, answerGRPC)
	for range 2 {
		addr = relayed(t, addr)
	}
	for _, endless := range []bool{false, true} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c := newCaller(conn, endless)
		if err := c.run(100, time.Now().Add(50*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if endless && c.Bytes == 0 || !endless && c.Count < 100 {
			t.Errorf("endless %v: %d calls, %d bytes", endless, c.Count, c.Bytes)
		}
	}
}

func TestPaced(t *testing.T) {
	p, err := newPacer(relayed(t, listen(t, answerHTTP)), 4, timetable{every: time.Millisecond, count: 30})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.run(); err != nil || p.Count != 30 || len(p.latencies) != 30 {
		t.Errorf("%d of 30 answers: %v", p.Count, err)
	}
}

func TestTCP(t *testing.T) {
	addr := relayed(t, listen(t, answerTCP))
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := useTCP(conn); err != nil {
		t.Error(err)
	}
	if _, err := conn.Write([]byte{wantBulk}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, conn, 1<<20); err != nil {
		t.Error(err)
	}
}

func listen(t *testing.T, each func(net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				each(conn)
			}()
		}
	}()
	return listener.Addr().String()
}

// relayed puts a relay before an address. It runs until the test's process ends.
func relayed(t *testing.T, addr string) string {
	t.Helper()
	r, err := newRelay([]string{"127.0.0.1:0=" + addr})
	if err != nil {
		t.Fatal(err)
	}
	for listener := range r.dials {
		at, err := unix.Getsockname(listener)
		if err != nil {
			t.Fatal(err)
		}
		addr = fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
	}
	go func() { _ = r.run() }()
	return addr
}
