package view

import (
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
)

var update = flag.Bool("update", false, "write the golden files anew")

// serve answers with what is in testdata/api, at the socket of a made-up mesh,
// and returns its directory.
func serve(t *testing.T, handler http.Handler) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tulle") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "api.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	return dir
}

func fromFiles(t *testing.T) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "localhost" {
			t.Errorf("Host is %q: the API would refuse it", r.Host)
		}
		name := strings.TrimPrefix(r.URL.Path, "/api/v1/")
		if q := r.URL.Query().Get("name"); q != "" {
			name += "-" + q
		}
		body, err := os.ReadFile(filepath.Join("testdata", "api", name+".json"))
		if err != nil {
			body = []byte(`{"now":"2026-11-22T12:00:00Z","range":"10s","items":[]}`)
		}
		_, _ = w.Write(body)
	})
}

// run returns what the command wrote and its exit code.
func run(t *testing.T, ctx context.Context, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs strings.Builder
	env := &command.Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs}
	for _, c := range Commands() {
		if c.Name == args[0] {
			code = c.Run(ctx, env, args[1:])
			return out.String(), errs.String(), code
		}
	}
	t.Fatalf("no command is called %s", args[0])
	return "", "", 0
}

func TestTables(t *testing.T) {
	dir := serve(t, fromFiles(t))
	for name, args := range map[string]string{
		"stat":          "stat",
		"stat-wide":     "stat -o wide",
		"stat-json":     "stat -o json",
		"stat-empty":    "stat --since start", // overridden below
		"edges":         "edges",
		"edges-wide":    "edges -o wide",
		"proxies":       "proxies",
		"proxies-wide":  "proxies -o wide",
		"identities":    "identity",
		"identity":      "identity web",
		"dashboard":     "dashboard",
		"edges-nothing": "edges nobody",
	} {
		t.Run(name, func(t *testing.T) {
			from := dir
			if name == "stat-empty" {
				from = serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"items":[]}`)) }))
			}
			stdout, stderr, code := run(t, t.Context(), append(strings.Fields(args), "--run", from)...)
			if code != 0 || stderr != "" {
				t.Fatalf("exit code %d, stderr %q", code, stderr)
			}
			compare(t, filepath.Join("testdata", name+".txt"), stdout)
		})
	}
}

func compare(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (write it anew with: go test ./cmd/tulle/view -update)\ngot:\n%s\nwant:\n%s", file, got, want)
	}
	if i := strings.IndexFunc(got, func(r rune) bool { return r == 0x1b || r == '\r' || r == 0x202e }); i >= 0 {
		t.Errorf("%s: a control character reached the output: %q", file, got[i:])
	}
}

func TestErrorsSayWhatToType(t *testing.T) {
	dir := serve(t, fromFiles(t))
	refusing := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"error":"too many\u001b[31m"}`))
	}))
	nothing := t.TempDir()
	for args, want := range map[string]struct {
		code int
		text string
	}{
		"stat --run " + nothing:              {1, "tulle: the control plane is not running; start it with: sudo tulle up --run " + nothing + "\n"},
		"tap --run " + nothing:               {1, "tulle: the control plane is not running; start it with: sudo tulle up --run " + nothing + "\n"},
		"stat nobody --run " + dir:           {1, "tulle: no service is called nobody; see all of them with: tulle stat\n"},
		"identity nobody --run " + dir:       {1, "tulle: nobody holds an identity called nobody; see all of them with: tulle identity\n"},
		"edges --run " + refusing:            {1, "tulle: too many\uFFFD[31m\n"},
		"stat a b":                           {2, "give one or none"},
		"stat -o yaml":                       {2, "must be table, wide or json"},
		"edges --since 2h":                   {2, "from 5s to 1h"},
		"tap --status teapot":                {2, "tulle: --status=teapot: must be"},
		"tap --max-rps 0":                    {2, "between 1 and 1000"},
		"tap -o yaml":                        {2, "table, wide or json"},
		"tap a b":                            {2, "give one or none"},
		"dashboard web":                      {2, "takes no name"},
		"proxies --wtach":                    {2, "did you mean --watch?"},
		"tap --slower-than -3s --run " + dir: {2, "must not be negative"},
	} {
		t.Run(args, func(t *testing.T) {
			stdout, stderr, code := run(t, t.Context(), strings.Fields(args)...)
			if code != want.code || !strings.Contains(stderr, want.text) || strings.Count(stderr, "\n") != 1 || stdout != "" {
				t.Errorf("exit code %d, stdout %q, stderr %q; want %d and %q", code, stdout, stderr, want.code, want.text)
			}
		})
	}
	if c := (&client{run: command.DefaultRun}); c.upCommand() != "sudo tulle up" {
		t.Errorf("it says: %s", c.upCommand())
	}
}

func TestWatchRedrawsUntilTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := 0
	files := fromFiles(t)
	dir := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked == 3 {
			cancel()
		}
		files.ServeHTTP(w, r)
	}))
	stdout, stderr, code := run(t, ctx, "edges", "--watch", "--run", dir)
	if code != 0 || stderr != "" || strings.Count(stdout, "FROM") < 2 {
		t.Errorf("exit code %d, stderr %q, stdout %q", code, stderr, stdout)
	}
}

const events = `: tulle

data: {"time":"2026-11-22T12:00:00.25Z","source":"client","source_workload":"client-1","service":"web","workload":"web-2","protocol":"http/1","security":"mtls","outcome":"success","status":200,"method":"GET","path":"/items/1?q=2","duration_s":0.002412}

data: {"time":"2026-11-22T12:00:00.5Z","source":"192.0.2.1","service":"web","workload":"web-1","protocol":"http/1","security":"plaintext","outcome":"app-failure","status":503,"method":"GET","path":"/items/1?q=3","duration_s":0.000912,"dropped":7}

data: {"time":"2026-11-22T12:00:00.75Z","source":"client","source_workload":"client-1","service":"db","workload":"db-1","protocol":"tcp","security":"mtls","outcome":"reset","duration_s":1.3}

data: {"time":"2026-11-22T12:00:01Z","source":"client","service":"web","protocol":"http/1","security":"mtls","outcome":"success","status":200,"method":"G\u001b[2JT","path":"/\u202eevil\r\n","duration_s":1e-05}

`

func TestTapAndTop(t *testing.T) {
	t.Setenv("TZ", "UTC")
	query := ""
	dir := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/tap" {
			_, _ = w.Write([]byte(`{"items":[{}]}`)) // whoever is asked for is there
			return
		}
		query = r.URL.Query().Encode()
		_, _ = w.Write([]byte(events))
	}))
	stdout, stderr, code := run(t, t.Context(), "tap", "web", "--method", "GET", "--path", "/items", "--slower-than", "1500us", "--client", "client", "--status", "2xx", "--max-rps", "9", "--run", dir)
	if code != 1 || !strings.HasPrefix(stderr, "tulle: the control plane has ended; start it with: sudo tulle up --run ") {
		t.Errorf("when the stream ends: exit code %d, stderr %q", code, stderr)
	}
	if want := "client=client&max=9&method=GET&min_ms=1.5&path=%2Fitems&service=web&status=2xx"; query != want {
		t.Errorf("asked for %s, want %s", query, want)
	}
	compare(t, filepath.Join("testdata", "tap.txt"), withoutZone(stdout))
	stdout, _, _ = run(t, t.Context(), "tap", "-o", "json", "--run", dir)
	if strings.Count(stdout, "\n") != 4 || !strings.HasPrefix(stdout, `{"time"`) {
		t.Errorf("as JSON: %q", stdout)
	}
	stdout, _, _ = run(t, t.Context(), "tap", "-o", "wide", "--run", dir)
	compare(t, filepath.Join("testdata", "tap-wide.txt"), withoutZone(stdout))
	stdout, _, _ = run(t, t.Context(), "top", "-o", "wide", "--run", dir)
	compare(t, filepath.Join("testdata", "top-wide.txt"), stdout)
	stdout, _, _ = run(t, t.Context(), "top", "-o", "json", "--run", dir)
	if !strings.HasPrefix(stdout, "[{") || !strings.Contains(stdout, `{"source":"192.0.2.1","service":"web","request":"GET /items/1","requests":1,"failures":1,`) || strings.Count(stdout, "\n") != 1 {
		t.Errorf("as JSON: %s", stdout)
	}
	stdout, _, _ = run(t, t.Context(), "top", "--run", dir)
	compare(t, filepath.Join("testdata", "top.txt"), stdout)
}

// withoutZone leaves minutes and smaller of the times, which are local.
func withoutZone(lines string) string {
	var b strings.Builder
	for line := range strings.Lines(lines) {
		b.WriteString("HH" + line[2:])
	}
	return b.String()
}

// TestTapOfNobody: it says so and who there is, and waits all the same.
func TestTapOfNobody(t *testing.T) {
	files := fromFiles(t)
	for args, want := range map[string]string{
		"tap nobody":                     `tulle: nobody of the mesh is called "nobody"; there are: billing, catalog, evil`,
		"tap web --client nobody":        `"nobody"; there are: `,
		"top nobody":                     `"nobody"; there are: `,
		"tap catalogue":                  `"catalogue"; the nearest name is catalog. Waiting`,
		"tap 10.84.0.9":                  "",
		"tap --client 10.84.0.9":         "",
		"tap --client spiffe://t/ns/n/x": "",
		"tap":                            "",
	} {
		t.Run(args, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			dir := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch name := r.URL.Query().Get("name"); {
				case r.URL.Path == "/api/v1/tap":
					_ = http.NewResponseController(w).Flush()
					cancel()
					<-r.Context().Done()
				case name == "web":
					_, _ = w.Write([]byte(`{"items":[{}]}`))
				default:
					files.ServeHTTP(w, r)
				}
			}))
			_, stderr, code := run(t, ctx, append(strings.Fields(args), "--run", dir)...)
			if code != 0 || !strings.Contains(stderr, want) || want == "" && stderr != "" {
				t.Errorf("exit code %d, stderr %q, want %q", code, stderr, want)
			}
		})
	}
	// A control plane of another version, which cannot be asked, is tapped all the same.
	dir := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/tap" {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = w.Write([]byte(events))
	}))
	if stdout, stderr, _ := run(t, t.Context(), "tap", "nobody", "--run", dir); strings.Count(stdout, "\n") != 4 || strings.Contains(stderr, "nobody") {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
}

func TestTapEndsWithCtrlC(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dir := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(events))
		_ = http.NewResponseController(w).Flush()
		cancel()
		<-r.Context().Done()
	}))
	if _, stderr, code := run(t, ctx, "tap", "--run", dir); code != 0 || stderr != "" {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}

func TestNumbers(t *testing.T) {
	for us, want := range map[float64]string{0: "0µs", 999: "999µs", 999.7: "1.0ms", 1000: "1.0ms", 9949: "9.9ms", 9960: "10ms", 999_400: "999ms", 999_600: "1.0s", 61e6: "61.0s"} {
		if got := interval(us / 1e6); got != want {
			t.Errorf("interval(%v µs) = %s, want %s", us, got, want)
		}
	}
	for share, want := range map[float64]string{1: "100%", 0.999999: "99.99%", 0.99: "99.00%", 0.5: "50.0%", 0: "0%"} {
		if got := percent(&share); got != want {
			t.Errorf("percent(%v) = %s, want %s", share, got, want)
		}
	}
	if got := printable("a\x1b[31mb\u202ec\r\nd é 界"); got != "a\uFFFD[31mb\uFFFDc\uFFFD\uFFFDd é 界" {
		t.Errorf("printable: %q", got)
	}
	if got := good.paint("x", true); got != "\x1b[32mx\x1b[0m" || good.paint("x", false) != "x" {
		t.Errorf("paint: %q", got)
	}
}

func TestClip(t *testing.T) {
	for line, want := range map[string]string{
		"":                                "",
		"12345":                           "12345",
		"123456":                          "12345\x1b[0m",
		"ééééé":                           "ééééé",
		"éééééé":                          "ééééé\x1b[0m",
		"\x1b[32m12345\x1b[0m":            "\x1b[32m12345\x1b[0m",
		"1\x1b[32m2345\x1b[0m6":           "1\x1b[32m2345\x1b[0m\x1b[0m",
		"\x1b[31m1234567\x1b[0m \x1b[2m8": "\x1b[31m12345\x1b[0m",
	} {
		if got := string(clip([]byte(line), 5)); got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
}

func TestScreenRedrawsInPlace(t *testing.T) {
	var out strings.Builder
	s := screen{out: &out, terminal: true, again: true}
	for _, text := range []string{"one\ntwo\n", "three\n"} {
		if err := s.draw(func(w io.Writer) error { _, err := w.Write([]byte(text)); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if want := "\x1b[2J\x1b[Hone\x1b[K\ntwo\x1b[K\n\x1b[J" + "\x1b[Hthree\x1b[K\n\x1b[J"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
