package proxy

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/balance"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// TestWhatFailedWasNotPlaintext: what could not be sent to a workload of the mesh
// counts as what it was to be, whatever it speaks and whyever it failed.
func TestWhatFailedWasNotPlaintext(t *testing.T) {
	app, _ := newGRPCApp(t)
	stranger := newTestPair(t, app, false) // proves itself by another authority
	strangerAt, err := net.ResolveTCPAddr("tcp", stranger.plain)
	if err != nil {
		t.Fatal(err)
	}
	id := mesh.ID{TrustDomain: "test.local", Namespace: "default", Account: "server"}
	speak := map[mesh.Protocol]func(t *testing.T, addr string){
		mesh.HTTP1: func(_ *testing.T, addr string) {
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			if resp, err := client.Get("http://" + addr + "/"); err == nil {
				_ = resp.Body.Close()
			}
		},
		mesh.HTTP2: func(t *testing.T, addr string) {
			_ = newGRPCClient(t, addr).Invoke(context.Background(), "/echo/unary", wrapperspb.String(""), &wrapperspb.StringValue{})
		},
		mesh.TCP: func(t *testing.T, addr string) {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = c.Write([]byte("\x00not HTTP\n"))
			_, _ = io.ReadAll(c)
		},
	}
	for name, tc := range map[string]struct {
		at      net.Addr // nil: no endpoint
		id      mesh.ID
		want    mesh.Security
		outcome mesh.Outcome
	}{
		"nobody":               {nil, mesh.ID{}, mesh.MutualTLS, mesh.NoEndpoint},
		"refused":              {deadAddr(t), id, mesh.MutualTLS, mesh.ConnectFail},
		"refused in plaintext": {deadAddr(t), mesh.ID{}, mesh.Plaintext, mesh.ConnectFail},
		"another authority":    {strangerAt, id, mesh.MutualTLS, mesh.TLSFail},
	} {
		for proto, call := range speak {
			t.Run(name+" "+proto.String(), func(t *testing.T) {
				p := newTestProxy(t, newTestAuthority(t), "client", false)
				var specs []balance.Spec[endpointKey]
				if tc.at != nil {
					addr, err := addrPort(tc.at)
					if err != nil {
						t.Fatal(err)
					}
					specs = append(specs, balance.Spec[endpointKey]{Key: endpointKey{addr: addr, id: tc.id}, Ready: true})
				}
				d := newTestDestination(p, "server", specs...)
				t.Cleanup(d.set.Close)
				watch := &tap{id: 1, max: 100, events: make(chan mesh.Exchange, 100)}
				p.recorder.addTap(watch)
				addr := serveTest(t, p, func(ctx context.Context, c *tcp.Conn, tr *tracked) bool {
					o := &outbound{proxy: p, conn: c, track: tr, dest: d}
					o.client, _ = addrPort(c.RemoteAddr())
					return o.serve(ctx)
				})
				call(t, addr.String())
				if x := <-watch.events; x.Security != tc.want || x.Outcome != tc.outcome || x.Protocol != proto {
					t.Errorf("recorded as %s, %s, %s; want %s, %s", x.Protocol, x.Security, x.Outcome, tc.want, tc.outcome)
				}
				for _, e := range p.recorder.all() {
					if e.key.security != tc.want || e.key.service != "server" {
						t.Errorf("counted as %s of %q, want %s", e.key.security, e.key.service, tc.want)
					}
				}
			})
		}
	}
}

// TestIntendedOutlivesTheEndpoints: a service whose last replica has gone is
// reached as that one was.
func TestIntendedOutlivesTheEndpoints(t *testing.T) {
	meshed, plain := webAt("10.84.0.2:80"), webAt("10.84.0.2:80")
	meshed.Endpoints[0].Identity, plain.Endpoints[0].Identity = "spiffe://tulle.local/ns/default/sa/web", ""
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		d := found(t, r, fake, webAt())
		for _, step := range []struct {
			m    *tullev1.Destination
			want mesh.Security
		}{
			{webAt(), mesh.MutualTLS}, {plain, mesh.Plaintext}, {webAt(), mesh.Plaintext}, {meshed, mesh.MutualTLS}, {webAt(), mesh.MutualTLS},
		} {
			r.adopt(d, step.m)
			if got := d.intended(nil); got != step.want {
				t.Errorf("%s with %d endpoints, want %s", got, len(step.m.Endpoints), step.want)
			}
		}
	})
}

// TestRefusedHandshakeWasNotPlaintext: a caller that speaks the mesh's TLS and
// proves nothing is refused, and counts as no plaintext.
func TestRefusedHandshakeWasNotPlaintext(t *testing.T) {
	app, _ := newGRPCApp(t)
	pair := newTestPair(t, app, false)
	watch := &tap{id: 1, max: 100, events: make(chan mesh.Exchange, 100)}
	pair.server.recorder.addTap(watch)
	c, err := tls.Dial("tcp", pair.plain, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{mesh.ALPNTCP}, MinVersion: tls.VersionTLS13})
	if err == nil {
		_, _ = io.ReadAll(c) // the refusal comes after the client's last word
		_ = c.Close()
	}
	if x := <-watch.events; x.Security != mesh.MutualTLS || x.Outcome != mesh.TLSFail || x.Direction != mesh.Inbound {
		t.Errorf("recorded as %s, %s, %s", x.Direction, x.Security, x.Outcome)
	}
	for _, e := range pair.server.recorder.all() {
		if e.key.security != mesh.MutualTLS {
			t.Errorf("counted as %s", e.key.security)
		}
	}
}
