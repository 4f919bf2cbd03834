package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/balance"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// h2Fleet is a client's proxy in front of endpoints without the mesh's TLS, so
// that a test can be the endpoint.
func h2Fleet(t testing.TB, endpoints ...net.Addr) (*Proxy, *destination, string) {
	t.Helper()
	p := newTestProxy(t, newTestAuthority(t), "client", false)
	var specs []balance.Spec[endpointKey]
	for i, a := range endpoints {
		addr, err := addrPort(a)
		if err != nil {
			t.Fatal(err)
		}
		specs = append(specs, balance.Spec[endpointKey]{Key: endpointKey{addr: addr, workload: fmt.Sprint("server-", i)}, Ready: true})
	}
	d := newTestDestination(p, "server", specs...)
	t.Cleanup(d.set.Close)
	addr := serveTest(t, p, func(ctx context.Context, c *tcp.Conn, tr *tracked) bool {
		o := &outbound{proxy: p, conn: c, track: tr, dest: d}
		o.client, _ = addrPort(c.RemoteAddr())
		return o.serve(ctx)
	})
	return p, d, addr.String()
}

// rawApp serves connections frame by frame: on is called for each request.
func rawApp(t testing.TB, on func(f *http2.Framer, c net.Conn, id uint32), settings ...http2.Setting) net.Addr {
	return tcpApp(t, func(c *net.TCPConn) {
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		f := http2.NewFramer(c, c)
		_ = f.WriteSettings(settings...)
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			switch frame := frame.(type) {
			case *http2.SettingsFrame:
				if !frame.IsAck() {
					_ = f.WriteSettingsAck()
				}
			case *http2.PingFrame:
				if !frame.IsAck() {
					_ = f.WritePing(true, frame.Data)
				}
			case *http2.HeadersFrame:
				on(f, c, frame.StreamID)
			}
		}
	})
}

// deadAddr is an address that refuses connections.
func deadAddr(t testing.TB) net.Addr {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr()
}

// TestH2Elsewhere: what no application has seen goes to another one.
func TestH2Elsewhere(t *testing.T) {
	for _, c := range []struct {
		name string
		bad  func(t *testing.T) net.Addr
	}{
		{"nobody listens", func(t *testing.T) net.Addr { return deadAddr(t) }},
		{"refused stream", func(t *testing.T) net.Addr {
			return rawApp(t, func(f *http2.Framer, _ net.Conn, id uint32) { _ = f.WriteRSTStream(id, http2.ErrCodeRefusedStream) })
		}},
		{"goaway before it", func(t *testing.T) net.Addr {
			return rawApp(t, func(f *http2.Framer, _ net.Conn, _ uint32) { _ = f.WriteGoAway(0, http2.ErrCodeNo, nil) })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var seen atomic.Int64
			good := newH2App(t, func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				seen.Add(1)
				fmt.Fprintf(w, "%s %s", r.Method, b)
			})
			_, _, addr := h2Fleet(t, c.bad(t), good)
			client := newH2Client(t)
			for i := range 20 {
				resp, err := client.Post("http://"+addr+"/", "text/plain", strings.NewReader(fmt.Sprint("body ", i)))
				if err != nil {
					t.Fatal(i, err)
				}
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if want := fmt.Sprint("POST body ", i); resp.StatusCode != 200 || string(b) != want {
					t.Fatal(i, resp.Status, string(b))
				}
			}
			if n := seen.Load(); n != 20 {
				t.Errorf("%d requests were seen", n)
			}
		})
	}
}

// TestH2NotTwice: what an application may have seen is not sent again.
func TestH2NotTwice(t *testing.T) {
	var seen atomic.Int64
	for _, c := range []struct {
		name string
		bad  func(f *http2.Framer, c net.Conn, id uint32)
	}{
		{"reset", func(f *http2.Framer, _ net.Conn, id uint32) { _ = f.WriteRSTStream(id, http2.ErrCodeInternal) }},
		{"closed", func(_ *http2.Framer, c net.Conn, _ uint32) { c.Close() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen.Store(0)
			app := rawApp(t, func(f *http2.Framer, conn net.Conn, id uint32) { seen.Add(1); c.bad(f, conn, id) })
			p, _, addr := h2Fleet(t, app)
			resp, err := newH2Client(t).Post("http://"+addr+"/", "text/plain", strings.NewReader("x"))
			if err == nil {
				if resp.Body.Close(); resp.StatusCode != 502 {
					t.Error(resp.Status)
				}
			}
			if n := seen.Load(); n != 1 {
				t.Errorf("seen %d times", n)
			}
			if n := outcomeCount(p, mesh.Reset); n != 1 {
				t.Errorf("%d resets were counted", n)
			}
		})
	}
}

func outcomeCount(p *Proxy, o mesh.Outcome) (n uint64) {
	for _, e := range p.recorder.all() {
		if e.key.protocol == mesh.HTTP2 {
			n += e.outcomes[o].Load()
		}
	}
	return n
}

// TestH2Nobody: a readable answer, in the terms of gRPC where it is asked for.
func TestH2Nobody(t *testing.T) {
	_, _, addr := h2Fleet(t, deadAddr(t))
	resp, err := newH2Client(t).Get("http://" + addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 502 || resp.Header.Get("tulle-error") != "connect-failed" || !strings.Contains(string(b), "refused") {
		t.Errorf("%s %v %q", resp.Status, resp.Header, b)
	}
	err = newGRPCClient(t, addr).Invoke(context.Background(), "/echo/unary", wrapperspb.String(""), &wrapperspb.StringValue{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
}

func TestH2HeaderListTooLarge(t *testing.T) {
	app := newH2App(t, func(http.ResponseWriter, *http.Request) { t.Error("was asked") })
	c, err := net.Dial("tcp4", newTestPair(t, app, false).addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/"}, {"content-type", "application/grpc"}} {
		_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	for range 20 {
		_ = enc.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 3900)})
	}
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_, _ = io.WriteString(c, http2.ClientPreface)
	_ = f.WriteSettings()
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(block.String()), EndStream: true, EndHeaders: true})
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if m, ok := frame.(*http2.MetaHeadersFrame); ok {
			if m.PseudoValue("status") != "200" || m.Fields[2].Value != "8" || !m.StreamEnded() {
				t.Error(m)
			}
			return
		}
	}
}

// TestH2SlowReader: one client stream that reads nothing slows its sender down
// and no other stream.
func TestH2SlowReader(t *testing.T) {
	var written atomic.Int64
	app := newH2App(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/fast" {
			fmt.Fprint(w, "fast")
			return
		}
		for range 1000 {
			n, err := w.Write(make([]byte, 64<<10))
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	client := newH2Client(t)
	url := "http://" + newTestPair(t, app, false).addr
	for range 8 {
		slow, err := client.Get(url + "/slow")
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Body.Close()
	}
	for range 200 {
		resp, err := client.Get(url + "/fast")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); string(b) != "fast" || err != nil {
			t.Fatal(string(b), err)
		}
		resp.Body.Close()
	}
	// What the client's library reads ahead, and a window on each side of each proxy.
	if n := written.Load(); n > 8*(4<<20+3<<20) {
		t.Errorf("the application wrote %d bytes that nobody read", n)
	}
}

// TestH2Drain: what is under way is finished, and the client goes elsewhere.
func TestH2Drain(t *testing.T) {
	asked, goOn := make(chan struct{}), make(chan struct{})
	app := newH2App(t, func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		<-goOn
		fmt.Fprint(w, "done")
	})
	pair := newTestPair(t, app, false)
	client := newH2Client(t)
	answer := make(chan string)
	go func() {
		resp, err := client.Get("http://" + pair.addr + "/")
		if err != nil {
			answer <- err.Error()
			return
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		answer <- fmt.Sprint(string(b), err)
	}()
	<-asked
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		pair.server.conns.drain(20 * time.Second)
		pair.client.conns.drain(20 * time.Second)
	}()
	select {
	case <-drained:
		t.Error("a request was under way")
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	if got := <-answer; got != "done<nil>" {
		t.Error(got)
	}
	<-drained
}

// TestH2Record: one exchange per stream, with the outcome that gRPC says.
func TestH2Record(t *testing.T) {
	app, _ := newGRPCApp(t)
	pair := newTestPair(t, app, false)
	watch := &tap{id: 1, max: 100, events: make(chan mesh.Exchange, 100)}
	pair.client.recorder.addTap(watch)
	c := newGRPCClient(t, pair.addr)
	for _, method := range []string{"/echo/unary", "/echo/fail", "/echo/nothing"} {
		_ = c.Invoke(context.Background(), method, wrapperspb.String("hello"), &wrapperspb.StringValue{})
	}
	for _, want := range []struct {
		path    string
		outcome mesh.Outcome
	}{{"/echo/unary", mesh.Success}, {"/echo/fail", mesh.Success}, {"/echo/nothing", mesh.AppFailure}} {
		x := <-watch.events
		if x.Path != want.path || x.Outcome != want.outcome || x.Protocol != mesh.HTTP2 || x.Status != 200 || x.Method != "POST" ||
			x.Host != pair.addr || x.Security != mesh.MutualTLS || x.Server.ID != pair.server.config.ID || x.FirstByte <= 0 || x.Duration < x.FirstByte || x.BytesSent == 0 {
			t.Errorf("%+v, want %+v", x, want)
		}
	}
}

// TestH2Sessions: few connections carry many streams, and close when idle.
func TestH2Sessions(t *testing.T) {
	app, _ := newGRPCApp(t)
	pair := newTestPair(t, app, false)
	for range 10 {
		c := newGRPCClient(t, pair.addr)
		if err := c.Invoke(context.Background(), "/echo/unary", wrapperspb.String("x"), &wrapperspb.StringValue{}); err != nil {
			t.Fatal(err)
		}
	}
	up := pair.dest.set.Endpoints()[0].Value
	up.h2.mu.Lock()
	n := len(up.h2.sessions)
	up.h2.mu.Unlock()
	if n != 1 {
		t.Errorf("%d connections for ten clients", n)
	}
	up.sweep(pair.client.now() + 2*sessionIdle) // notes that nothing is open
	up.h2.mu.Lock()
	n = len(up.h2.sessions)
	up.h2.mu.Unlock()
	if n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

// TestH2Age: a connection that is old takes no new streams, and those that it has
// go on.
func TestH2Age(t *testing.T) {
	app, _ := newGRPCApp(t)
	pair := newTestPair(t, app, false)
	c := newGRPCClient(t, pair.addr)
	open := func() grpc.ClientStream {
		t.Helper()
		s, err := c.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/echo/bidi")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	echo := func(s grpc.ClientStream) {
		t.Helper()
		got := &wrapperspb.StringValue{}
		if err := errors.Join(s.SendMsg(wrapperspb.String("x")), s.RecvMsg(got)); err != nil || got.Value != "x" {
			t.Fatal(got.Value, err)
		}
	}
	old := open()
	echo(old)
	up := pair.dest.set.Endpoints()[0].Value
	session := func() *h2Session {
		up.h2.mu.Lock()
		defer up.h2.mu.Unlock()
		if len(up.h2.sessions) != 1 {
			t.Fatalf("%d connections", len(up.h2.sessions))
		}
		return up.h2.sessions[0]
	}
	first := session()
	up.sweep(pair.client.now() + h2SessionAge + time.Second)
	echo(open())
	if session() == first {
		t.Error("a new stream went over the old connection")
	}
	echo(old)
	if err := old.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := old.RecvMsg(&wrapperspb.StringValue{}); err != io.EOF {
		t.Error(err)
	}
}

// TestH2Leak: nothing is left of connections that have ended.
func TestH2Leak(t *testing.T) {
	app, _ := newGRPCApp(t)
	pair := newTestPair(t, app, false)
	before := runtime.NumGoroutine()
	for range 20 {
		c := newGRPCClient(t, pair.addr)
		if err := c.Invoke(context.Background(), "/echo/unary", wrapperspb.String("x"), &wrapperspb.StringValue{}); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	pair.dest.set.Close()
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b, true)])
		}
	}
}

// TestH2ClientGone: the application hears that the client does not want the answer.
func TestH2ClientGone(t *testing.T) {
	gone := make(chan error, 1)
	app := newH2App(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		gone <- r.Context().Err()
	})
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+newTestPair(t, app, false).addr+"/", nil)
	resp, err := newH2Client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestH2Strict: without an identity there is no HTTP/2 either.
func TestH2Strict(t *testing.T) {
	app := newH2App(t, func(http.ResponseWriter, *http.Request) {})
	pair := newTestPair(t, app, true)
	if resp, err := newH2Client(t).Get("http://" + pair.addr + "/"); err != nil {
		t.Error(err)
	} else {
		resp.Body.Close()
	}
	// When the reset arrives decides how the client puts it.
	if resp, err := newH2Client(t).Get("http://" + pair.plain + "/"); err == nil {
		resp.Body.Close()
		t.Errorf("answered %s", resp.Status)
	}
}
