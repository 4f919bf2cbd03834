package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tulle-mesh/tulle/mesh"
)

const (
	probePath = "/probe/"
	// maxProbeBody is how much of an answer is passed on, in bytes: as much as
	// the kubelet reads.
	maxProbeBody      = 10 << 10
	maxProbeRedirects = 10
	// probeTimeout ends a probe that its caller has forgotten.
	probeTimeout = 25 * time.Second
)

// Probe is a question to the application that the kubelet asks through the admin
// port. It reaches the application whatever the policy, and reaches nothing that
// was not declared; and an application that is not there is not hidden by a
// proxy that is.
type Probe struct {
	Name   string // the rest of the path after /probe/
	Scheme string // http, https, tcp or grpc
	Port   uint16
	Path   string // http: with the query; grpc: the service's name; tcp: ""
}

// ParseProbe reads "web/readiness=http://:8080/healthz".
func ParseProbe(s string) (Probe, error) {
	name, target, ok := strings.Cut(s, "=")
	scheme, rest, ok2 := strings.Cut(target, "://:")
	if !ok || !ok2 || name == "" {
		return Probe{}, fmt.Errorf("probe %q: must be NAME=SCHEME://:PORT/PATH", s)
	}
	port, path, slash := strings.Cut(rest, "/")
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return Probe{}, fmt.Errorf("probe %q: %q is not a port", s, port)
	}
	p := Probe{Name: name, Scheme: scheme, Port: uint16(n), Path: path}
	switch scheme {
	case "http", "https":
		p.Path = "/" + path
	case "tcp":
		if slash {
			return Probe{}, fmt.Errorf("probe %q: TCP knows no path", s)
		}
	case "grpc":
	default:
		return Probe{}, fmt.Errorf("probe %q: the scheme must be http, https, tcp or grpc", s)
	}
	return p, nil
}

// serveProbe asks the application at the address at which the caller has asked us.
func (p *Proxy) serveProbe(w http.ResponseWriter, r *http.Request) {
	probe, ok := p.probes[strings.TrimPrefix(r.URL.Path, probePath)]
	local, err := localAddr(r)
	if !ok || err != nil {
		http.NotFound(w, r)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), probeTimeout)
	defer cancel()
	app := netip.AddrPortFrom(local, probe.Port)
	switch probe.Scheme {
	case "tcp":
		err = probeTCP(ctx, app)
	case "grpc":
		err = probeGRPC(ctx, app, probe.Path)
	default:
		err = probeHTTP(ctx, w, r, probe, app)
		if err == nil {
			return
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

func localAddr(r *http.Request) (netip.Addr, error) {
	addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return netip.Addr{}, errors.New("the caller's connection has no address")
	}
	local, err := addrPort(addr)
	return local.Addr(), err
}

func probeTCP(ctx context.Context, app netip.AddrPort) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", app.String())
	if err != nil {
		return err
	}
	return conn.Close()
}

func probeGRPC(ctx context.Context, app netip.AddrPort, service string) error {
	conn, err := grpc.NewClient("passthrough:///"+app.String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("kube-probe"), grpc.WithDisableServiceConfig(), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		return err
	}
	if s := answer.GetStatus(); s != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("service %q: %s", service, s)
	}
	return nil
}

// probeHTTP passes the request on as the kubelet would have sent it to the
// application, and the answer back. Redirects are followed as the kubelet does,
// on the same host only; one elsewhere counts as success.
func probeHTTP(ctx context.Context, w http.ResponseWriter, r *http.Request, probe Probe, app netip.AddrPort) error {
	target, err := url.Parse(probe.Scheme + "://" + app.String() + probe.Path)
	if err != nil {
		return err
	}
	out := (&http.Request{Method: http.MethodGet, URL: target, Header: r.Header.Clone()}).WithContext(ctx)
	if own := strconv.Itoa(mesh.AdminPort); !strings.HasSuffix(r.Host, ":"+own) {
		out.Host = r.Host // given by the probe itself
	}
	transport := &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, TLSHandshakeTimeout: probeTimeout,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // as the kubelet does: a probe asks for life, not for identity
	}
	client := http.Client{Transport: transport, CheckRedirect: func(to *http.Request, via []*http.Request) error {
		if to.URL.Hostname() != target.Hostname() || len(via) >= maxProbeRedirects {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	answer, err := client.Do(out)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	code := answer.StatusCode
	if code >= 300 && code < 400 {
		code = http.StatusOK // or the caller would follow it, from us
	}
	w.WriteHeader(code)
	_, _ = io.Copy(w, io.LimitReader(answer.Body, maxProbeBody))
	return nil
}
