package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// priorKnowledge is HTTP/2 in the clear, without asking for it first.
func priorKnowledge() *http.Protocols {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &p
}

// newH2App serves HTTP/2 with prior knowledge on loopback.
func newH2App(t testing.TB, h http.HandlerFunc, tune ...func(*http.Server)) net.Addr {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h, Protocols: priorKnowledge()}
	for _, f := range tune {
		f(server)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ln) })
	t.Cleanup(func() { server.Close(); serving.Wait() })
	return ln.Addr()
}

// newH2Client is a client that speaks HTTP/2 with prior knowledge.
func newH2Client(t testing.TB) *http.Client {
	tr := &http.Transport{Protocols: priorKnowledge()}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// h2Ways are how a client may reach the application.
var h2Ways = []struct {
	name   string
	target func(t testing.TB, app net.Addr) string
}{
	{"direct", func(_ testing.TB, app net.Addr) string { return app.String() }},
	{"meshed", func(t testing.TB, app net.Addr) string { return newTestPair(t, app, false).addr }},
	{"unmeshed client", func(t testing.TB, app net.Addr) string { return newTestPair(t, app, false).plain }},
}

// h2Talks are things that client and application do; what they see must be the
// same with and without the mesh.
var h2Talks = []struct {
	name string
	app  http.HandlerFunc
	talk func(t testing.TB, c *http.Client, url string) string
}{
	{"get", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Answer", r.Header.Get("X-Question"))
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.URL, r.Proto, r.Host)
	}, func(t testing.TB, c *http.Client, url string) string {
		req, _ := http.NewRequest("GET", url+"/path?q=1", nil)
		req.Host = "server.mesh"
		req.Header.Set("X-Question", "what?")
		return do(t, c, req)
	}},
	{"post and trailers", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		b, err := io.ReadAll(r.Body)
		w.Write(b)
		w.Header().Set("X-Sum", fmt.Sprint(sum(b), err, r.Trailer))
	}, func(t testing.TB, c *http.Client, url string) string {
		req, _ := http.NewRequest("POST", url+"/", io.MultiReader(strings.NewReader(mebibyte), strings.NewReader(mebibyte)))
		req.Trailer = http.Header{"X-End": {"yes"}}
		return do(t, c, req)
	}},
	{"no body", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) },
		func(t testing.TB, c *http.Client, url string) string {
			req, _ := http.NewRequest("DELETE", url+"/", nil)
			return do(t, c, req)
		}},
	{"head", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "1234") },
		func(t testing.TB, c *http.Client, url string) string {
			req, _ := http.NewRequest("HEAD", url+"/", nil)
			return do(t, c, req)
		}},
	{"early hints", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(103)
		fmt.Fprint(w, "done")
	}, func(t testing.TB, c *http.Client, url string) string {
		req, _ := http.NewRequest("GET", url+"/", nil)
		return do(t, c, req)
	}},
	{"large headers", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Large", r.Header.Get("X-Large"))
	}, func(t testing.TB, c *http.Client, url string) string {
		req, _ := http.NewRequest("GET", url+"/", nil)
		req.Header.Set("X-Large", strings.Repeat("abcdefgh", 6000))
		return do(t, c, req)
	}},
	{"application aborts", func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("half"))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}, func(t testing.TB, c *http.Client, url string) string {
		req, _ := http.NewRequest("GET", url+"/", nil)
		return do(t, c, req)
	}},
	{"answer before the request's end", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(403)
		fmt.Fprint(w, "no")
	}, func(t testing.TB, c *http.Client, url string) string {
		req, _ := http.NewRequest("POST", url+"/", io.LimitReader(zeros{}, 4<<20))
		return do(t, c, req)
	}},
	{"connect", func(w http.ResponseWriter, r *http.Request) {
		flush := http.NewResponseController(w).Flush
		fmt.Fprintf(w, "%s %s %s\n", r.Method, r.Host, r.URL)
		for lines := bufio.NewReader(r.Body); ; {
			_ = flush()
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprintf(w, "got %s", line)
		}
	}, func(t testing.TB, c *http.Client, url string) string {
		request, say := io.Pipe()
		req, err := http.NewRequest("CONNECT", url, request)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "server.mesh:443"
		resp, err := c.Do(req)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		heard := resp.Status
		answer := bufio.NewReader(resp.Body)
		for _, word := range []string{"one", "two"} { // each once the one before has come back
			line, err := answer.ReadString('\n')
			heard += fmt.Sprintf(" %q %v", line, err)
			_, _ = io.WriteString(say, word+"\n")
		}
		say.Close()
		rest, err := io.ReadAll(answer)
		return heard + fmt.Sprintf(" %q %v", rest, err)
	}},
	{"many at once", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) },
		func(t testing.TB, c *http.Client, url string) string {
			var group sync.WaitGroup
			out := make([]string, 600)
			for i := range out {
				group.Go(func() {
					body := fmt.Sprint(i, strings.Repeat("x", 100*i))
					resp, err := c.Post(url+"/", "text/plain", strings.NewReader(body))
					if err != nil {
						out[i] = err.Error()
						return
					}
					b, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					out[i] = fmt.Sprint(string(b) == body, err)
				})
			}
			group.Wait()
			return strings.Join(out, "\n")
		}},
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// do makes a request and tells all that was seen of the answer.
func do(t testing.TB, c *http.Client, req *http.Request) string {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		return strings.ReplaceAll(err.Error(), req.URL.Host, "HOST")
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	var out bytes.Buffer
	fmt.Fprintln(&out, resp.Proto, resp.Status, resp.ContentLength)
	resp.Header.Del("Date")
	_ = resp.Header.Write(&out)
	if len(b) > 200 {
		fmt.Fprintf(&out, "%d bytes, sum %x %v\n", len(b), sum(b), err)
	} else {
		fmt.Fprintf(&out, "%q %v\n", b, err)
	}
	_ = resp.Trailer.Write(&out)
	return strings.ReplaceAll(out.String(), req.URL.Host, "HOST")
}

func TestHTTP2Transparency(t *testing.T) {
	for _, talk := range h2Talks {
		t.Run(talk.name, func(t *testing.T) {
			t.Parallel()
			app := newH2App(t, talk.app)
			want := ""
			for _, way := range h2Ways {
				got := talk.talk(t, newH2Client(t), "http://"+way.target(t, app))
				if want == "" {
					want = got
				}
				if got != want {
					t.Errorf("%s:\n%s\nwithout the mesh:\n%s", way.name, got, want)
				}
			}
		})
	}
}

// TestHTTP2ExtendedConnect: a tunnel (RFC 8441) is offered because the
// application takes it, and carries bytes both ways.
func TestHTTP2ExtendedConnect(t *testing.T) {
	app := rawApp(t, func(f *http2.Framer, _ net.Conn, id uint32) {
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x88}, EndHeaders: true})
		_ = f.WriteData(id, false, []byte("from the server"))
	}, http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
	c, err := net.Dial("tcp4", newTestPair(t, app, false).addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	f := http2.NewFramer(c, c)
	_, _ = io.WriteString(c, http2.ClientPreface)
	_ = f.WriteSettings()
	ask := func(id uint32, fields ...string) {
		var block bytes.Buffer
		enc := hpack.NewEncoder(&block)
		enc.SetMaxDynamicTableSize(0)
		for i := 0; i < len(fields); i += 2 {
			_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
	}
	offered, tunnel := false, ""
	for tunnel == "" {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if v, ok := frame.Value(http2.SettingEnableConnectProtocol); ok && v == 1 {
				offered = true
				ask(1, ":method", "CONNECT", ":scheme", "http", ":path", "/", ":authority", "a", ":protocol", "websocket")
			} else if !frame.IsAck() && !offered {
				t.Fatal("extended CONNECT is not offered")
			}
		case *http2.DataFrame:
			if frame.StreamID == 1 {
				tunnel = string(frame.Data())
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			t.Fatal(frame)
		}
	}
	if tunnel != "from the server" {
		t.Error(tunnel)
	}
}

// TestHTTP2Load runs h2load where it is installed.
func TestHTTP2Load(t *testing.T) {
	path, err := exec.LookPath("h2load")
	if err != nil {
		t.Skip("h2load is not installed (Debian: nghttp2-client)")
	}
	app := newH2App(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, strings.Repeat("x", 1000)) })
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "-n", "5000", "-c", "5", "-m", "100", "http://"+newTestPair(t, app, false).addr+"/").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "5000 succeeded, 0 failed") {
		t.Errorf("%v\n%s", err, out)
	}
}
