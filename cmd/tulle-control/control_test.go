package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tulle-mesh/tulle/inject"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

type rawUnknown = runtime.Unknown

// running is a control plane in a process of its own.
type running struct {
	pid            int
	webhook, admin string // where it listens
	log            *output
}

// output is what a process has written so far.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// listening returns the address that the log tells for something, "" if it does
// not yet.
func (o *output) listening(what string) string {
	_, rest, _ := strings.Cut(o.String(), "msg=listening for="+what+" at=")
	at, _, _ := strings.Cut(rest, "\n")
	return at
}

func startControl(t *testing.T, program string, a *api, args ...string) *running {
	t.Helper()
	const any = "127.0.0.1:0"
	args = append([]string{
		"-kubeconfig", fakeKubeconfig(t, a.URL), "-proxy-image", "tulle-proxy:1", "-listen", any, "-listen-webhook", any,
		"-listen-admin", any, "-listen-dashboard", any, "-linger=0",
	}, args...)
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	cmd.Env = append(os.Environ(), asControl+"=1")
	var log output
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("control plane:\n%s", log.String())
		}
		a.CloseClientConnections()
		a.Close()
	})
	r := &running{pid: cmd.Process.Pid, log: &log}
	eventually(t, "listening", func() bool {
		r.webhook, r.admin = log.listening("webhook"), log.listening("admin")
		return r.admin != "" && r.webhook != ""
	})
	eventually(t, "ready", r.ready)
	return r
}

func (r *running) ready() bool {
	answer, err := http.Get("http://" + r.admin + "/ready")
	if err != nil {
		return false
	}
	answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// memory reads a figure of a process, in KiB.
func memory(t *testing.T, pid int, name string) (kib int) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), name+":"); ok {
			if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
				t.Fatal(err)
			}
		}
	}
	return kib
}

// The promise: at most 60 MB with 1,000 services and 5,000 endpoints.
func TestMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory is not ours")
	}
	a := newAPI(t)
	a.bigCluster(1000)
	// As it is shipped: a test program is twice as big.
	program := filepath.Join(t.TempDir(), "tulle-control")
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-tags=grpcnotrace", "-ldflags=-s -w", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r := startControl(t, program, a)
	eventually(t, "roots in each namespace", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.roots) == 20
	})
	eventually(t, "at most 60 MB resident", func() bool { return memory(t, r.pid, "VmRSS") <= 60_000 })
	t.Logf("resident: %d KiB, of which %d of its own; at most %d",
		memory(t, r.pid, "VmRSS"), memory(t, r.pid, "RssAnon"), memory(t, r.pid, "VmHWM"))
}

// The API server calls the webhook, by the bundle that it was given.
func TestWebhookOverTLS(t *testing.T) {
	a := newAPI(t)
	a.bigCluster(1)
	r := startControl(t, os.Args[0], a)
	var bundle []byte
	eventually(t, "a bundle", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		bundle = a.bundle
		return bundle != nil
	})
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(bundle) {
		t.Fatalf("bundle: %q", bundle)
	}
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: cluster.ControlHost}, DisableKeepAlives: true,
	}}
	body := `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","operation":"CREATE","namespace":"team-0",
		"resource":{"group":"","version":"v1","resource":"pods"},"object":{"metadata":{"name":"web"},"spec":{"containers":[{"name":"web"}]}}}}`
	answer, err := client.Post("https://"+r.webhook+cluster.WebhookPath, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	var review struct {
		Response struct {
			Allowed bool
			Patch   []byte
		}
	}
	if err := json.Unmarshal(content, &review); err != nil || !review.Response.Allowed || !bytes.Contains(review.Response.Patch, []byte(`"restartPolicy":"Always"`)) {
		t.Errorf("%s\n%s", content, review.Response.Patch)
	}
}

// A control plane that is told to end serves on; told again, it ends at once.
func TestLinger(t *testing.T) {
	a := newAPI(t)
	a.bigCluster(1)
	r := startControl(t, os.Args[0], a, "-linger=1h")
	for _, told := range []string{"once", "twice"} {
		if err := syscall.Kill(r.pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if told == "once" {
			eventually(t, "told to end", func() bool { return strings.Contains(r.log.String(), "told to end") })
			if !r.ready() {
				t.Error("told to end, it does not serve on")
			}
		}
	}
	eventually(t, "the end", func() bool { return !r.ready() })
}

// A control plane that is told of images only patches pods as `tulle inject`
// does, which knows nothing of the other flags.
func TestDefaultsAreTheInjectors(t *testing.T) {
	c, err := parse([]string{"-proxy-image=x/proxy:1", "-init-image=x/cni:1", "-pull-policy=IfNotPresent"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	c.Inject.Native = true
	plain := inject.Config{
		Image: "x/proxy:1", InitImage: "x/cni:1", PullPolicy: "IfNotPresent", Version: version, TrustDomain: cluster.TrustDomain,
		Control: fmt.Sprintf("%s:%d", cluster.ControlHost, mesh.ControlPort), CNI: true, Native: true,
	}
	pod := []byte(`{"metadata":{"name":"web"},"spec":{"containers":[{"name":"web","ports":[{"containerPort":80}],"livenessProbe":{"tcpSocket":{"port":80}}}]}}`)
	for _, cni := range []bool{true, false} {
		c.Inject.CNI, plain.CNI = cni, cni
		webhook, err1 := c.Inject.Patch(pod, inject.Origin{})
		offline, err2 := plain.Patch(pod, inject.Origin{})
		a, err3 := json.Marshal(webhook)
		b, err4 := json.Marshal(offline)
		if err := errors.Join(err1, err2, err3, err4); err != nil || len(webhook.Patch) == 0 || !bytes.Equal(a, b) {
			t.Errorf("%v: the webhook does\n%s\nand tulle inject\n%s", err, a, b)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string // "" : good
	}{
		{[]string{"-proxy-image=x"}, ""},
		{[]string{"-injector=false"}, ""},
		{[]string{"-proxy-image=x", "-auto-mesh=team in (a,b)", "-networks=10.0.0.0/8,fd00::/8", "-skip-inbound-ports=22,100-110"}, ""},
		{nil, "no image of the proxy"},
		{[]string{"-proxy-image=x", "-cni=false"}, "no image of the init container"},
		{[]string{"-proxy-image=x", "-auto-mesh=team in"}, "-auto-mesh"},
		{[]string{"-proxy-image=x", "-skip-inbound-ports=0"}, "-skip-inbound-ports"},
		{[]string{"-proxy-image=x", "-networks=10.0.0.0"}, "-networks"},
		{[]string{"-proxy-image=x", "-policy=open"}, "-policy"},
		{[]string{"-proxy-image=x", "-native-sidecar=maybe"}, "-native-sidecar"},
		{[]string{"-proxy-image=x", "-listen=4190"}, "-listen"},
		{[]string{"-proxy-image=x", "-trust-domain=A"}, "trust domain"},
		{[]string{"-proxy-image=x", "-proxy-memory-limit=much"}, "memory-limit"},
		{[]string{"-proxy-image=x", "extra"}, "extra"},
		{[]string{"-identity=false", "-discovery=false", "-injector=false", "-dashboard=false"}, "all parts"},
		{[]string{"-colour"}, "lists all flags"},
	} {
		_, err := parse(tt.args, io.Discard)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%v: %v", tt.args, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%v: %v, want %q", tt.args, err, tt.want)
		}
	}
}
