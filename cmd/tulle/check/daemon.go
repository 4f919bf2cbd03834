package check

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/cmd/tulle/host"
	"github.com/tulle-mesh/tulle/cmd/tulle/network"
)

// callTimeout bounds each question to the daemon.
const callTimeout = 3 * time.Second

func list(ctx context.Context, c *Config) (*tullev1.ListResponse, error) {
	conn, err := grpc.NewClient("unix:"+host.HostSocket(c.RunDir), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return tullev1.NewHostClient(conn).List(ctx, &tullev1.ListRequest{})
}

func daemon(ctx context.Context, c *Config) []Result {
	r := Result{Check: "is up", Verdict: OK}
	if _, err := os.Stat(host.HostSocket(c.RunDir)); errors.Is(err, os.ErrNotExist) {
		r.Verdict, r.Detail, r.Fix = Failed, "it was not started", "tulle up -d"
		if pid := host.Stray(c.RunDir); pid != 0 {
			r.Detail, r.Fix = fmt.Sprintf("process %d is, but its files in %s were removed", pid, c.RunDir), "tulle down && tulle up -d"
		}
		return []Result{r}
	}
	if _, err := list(ctx, c); err != nil {
		r.Verdict, r.Detail, r.Fix = Failed, "nobody answers on its socket", "tulle up -d, which takes running workloads over; or tulle down"
		return []Result{r}
	}
	return []Result{r}
}

// forwarding: only of interest to what leaves the host.
func forwarding(_ context.Context, _ *Config) []Result {
	r := Result{Check: "workloads reach other networks", Verdict: OK}
	if v, err := network.Sysctl("net/ipv4/ip_forward"); err != nil || v != "1" {
		r.Verdict, r.Detail = Warning, "net.ipv4.ip_forward is off: only this host and the mesh can be reached"
		r.Fix = "sysctl net.ipv4.ip_forward=1, or tulle down and tulle up -d without --no-masquerade"
	}
	return []Result{r}
}

// nameServer asks for a name that cannot exist: the answer must come at once,
// and be no.
func nameServer(ctx context.Context, c *Config) []Result {
	r := Result{Check: "name server answers", Verdict: OK}
	server, err := host.NameServer(c.RunDir)
	if err != nil {
		r.Verdict, r.Detail = Failed, err.Error()
		return []Result{r}
	}
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server.String())
	}}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = resolver.LookupHost(ctx, "tulle-check."+host.Domain+".")
	var dnsErr *net.DNSError
	if !errors.As(err, &dnsErr) || !dnsErr.IsNotFound {
		r.Verdict, r.Detail = Failed, fmt.Sprintf("%s: %v", server, err)
		r.Fix = "see who has the port with: ss -lnp 'sport = :53', and whether a firewall drops UDP on " + host.BridgeName
		return []Result{r}
	}
	r.Detail = server.String()
	return []Result{r}
}

// authority looks at the root's times by this machine's clock, which is how
// the proxies see it.
func authority(_ context.Context, c *Config) []Result {
	r := Result{Check: "certificate authority is valid", Verdict: OK}
	path := filepath.Join(c.StateDir, "ca.crt")
	text, err := os.ReadFile(path)
	if err != nil {
		r.Verdict, r.Detail, r.Fix = Failed, err.Error(), "tulle down, then tulle up -d makes a new one"
		return []Result{r}
	}
	block, _ := pem.Decode(text)
	if block == nil {
		r.Verdict, r.Detail, r.Fix = Failed, path+" holds no certificate", "tulle down --purge, then tulle up -d"
		return []Result{r}
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		r.Verdict, r.Detail, r.Fix = Failed, path+": "+err.Error(), "tulle down --purge, then tulle up -d"
		return []Result{r}
	}
	now := time.Now()
	switch {
	case now.Before(cert.NotBefore):
		r.Verdict, r.Detail = Failed, fmt.Sprintf("it begins at %s, and this machine's clock says %s", cert.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		r.Fix = "set the clock: timedatectl set-ntp true"
	case now.After(cert.NotAfter):
		r.Verdict, r.Detail = Failed, "it ended at "+cert.NotAfter.UTC().Format(time.RFC3339)
		r.Fix = "if the clock is right: tulle down --purge, then tulle up -d"
	case cert.NotAfter.Sub(now) < 30*24*time.Hour:
		r.Verdict, r.Detail, r.Fix = Warning, "it ends at "+cert.NotAfter.UTC().Format(time.RFC3339), "tulle down --purge, then tulle up -d"
	default:
		r.Detail = "until " + cert.NotAfter.UTC().Format(time.DateOnly)
	}
	return []Result{r}
}
