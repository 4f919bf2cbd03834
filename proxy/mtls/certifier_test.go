package mtls

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

func TestFirstCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAuthority(t)
		c, log := newCertifier(t, a)
		a.set(func() { a.down = true })
		time.AfterFunc(time.Minute, func() { a.set(func() { a.down = false }) })
		failing := time.Now().Add(2 * time.Minute)
		c.Token = func(context.Context) (string, error) {
			if time.Now().Before(failing) {
				return "", errors.New("the parent has no token")
			}
			return "good", nil
		}
		if err := c.First(context.Background()); err != nil {
			t.Fatal(err)
		}
		if took := time.Until(failing); took > 0 || took < -2*idleWait {
			t.Errorf("certified %v before the token was there", took)
		}
		if n := log.count("traffic waits"); n < 10 || n > 60 {
			t.Errorf("complained %d times in 2 minutes", n)
		}
		creds := c.Source.Load()
		if creds == nil || creds.ID != testID("web") || creds.check(time.Now()) != nil {
			t.Errorf("credentials %+v", creds)
		}
	})
}

func TestFirstEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAuthority(t)
		c, _ := newCertifier(t, a)
		c.Token = func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() } // a parent that hangs
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.First(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("First: %v", err)
		}
	})
}

// What an authority might answer by mistake is never used.
func TestWrongAnswers(t *testing.T) {
	other := newCA(t)
	for _, tt := range []struct {
		name   string
		spoil  func(t *testing.T, a *authority) func(*tullev1.CertifyResponse)
		change func(*x509.Certificate)
		want   string
	}{
		{name: "somebody else's identity", change: func(c *x509.Certificate) { c.URIs = leafFor(testID("db")).URIs }, want: "somebody else"},
		{name: "other trust domain", change: func(c *x509.Certificate) {
			c.URIs = leafFor(mesh.ID{TrustDomain: "evil", Namespace: "default", Account: "web"}).URIs
		}, want: "other-trust-domain"},
		{name: "ended already", change: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, want: "expired"},
		{name: "good for dialling only", change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, want: "serverAuth"},
		{name: "good for serving only", change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, want: "clientAuth"},
		{name: "another key", spoil: func(t *testing.T, a *authority) func(*tullev1.CertifyResponse) {
			leaf := a.ca.issue(t, testID("web"), nil)
			return func(m *tullev1.CertifyResponse) { m.Chain = leaf.Certificate }
		}, want: "another key"},
		{name: "a root that is not in the answer", spoil: func(*testing.T, *authority) func(*tullev1.CertifyResponse) {
			return func(m *tullev1.CertifyResponse) { m.Roots.Certificates = [][]byte{other.cert.Raw} }
		}, want: "untrusted"},
		{name: "no chain", spoil: func(*testing.T, *authority) func(*tullev1.CertifyResponse) {
			return func(m *tullev1.CertifyResponse) { m.Chain = nil }
		}, want: "no-certificate"},
		{name: "rubbish", spoil: func(*testing.T, *authority) func(*tullev1.CertifyResponse) {
			return func(m *tullev1.CertifyResponse) { m.Chain = [][]byte{[]byte("rubbish")} }
		}, want: "parse"},
		{name: "no roots", spoil: func(*testing.T, *authority) func(*tullev1.CertifyResponse) {
			return func(m *tullev1.CertifyResponse) { m.Roots.Certificates = nil }
		}, want: "empty set"},
		{name: "roots of another trust domain", spoil: func(*testing.T, *authority) func(*tullev1.CertifyResponse) {
			return func(m *tullev1.CertifyResponse) { m.Roots.TrustDomain = "evil" }
		}, want: "not of our trust domain"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newTestAuthority(t)
				c, _ := newCertifier(t, a)
				a.change = tt.change
				if tt.spoil != nil {
					a.spoil = tt.spoil(t, a)
				}
				err := c.certifyByToken(context.Background())
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want %q in it", err, tt.want)
				}
				if c.Source.Load() != nil {
					t.Error("used all the same")
				}
			})
		})
	}
}

// Only the control plane may answer, whoever else has a certificate.
func TestImpostorOfTheControlPlane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAuthority(t)
		c, _ := newCertifier(t, a)
		c.Roots = newCA(t).roots(t)
		if err := c.certifyByToken(context.Background()); err == nil || !strings.Contains(err.Error(), "untrusted") {
			t.Errorf("other root: %v", err)
		}
		c.ID.TrustDomain = "elsewhere"
		c.Roots = a.ca.roots(t)
		if err := c.certifyByToken(context.Background()); err == nil || !strings.Contains(err.Error(), "other-trust-domain") {
			t.Errorf("other trust domain: %v", err)
		}
		if len(a.seen()) != 0 {
			t.Error("the token went to somebody who had proved nothing")
		}
	})
}

func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAuthority(t)
		c, _ := newCertifier(t, a)
		stop := start(t, c)
		keys := map[any]bool{}
		last := time.Now()
		for range 10 {
			_, changed := c.Source.Watch()
			<-changed
			creds := c.Source.Load()
			if after := time.Since(last); after < 14*time.Hour || after > 18*time.Hour {
				t.Errorf("renewed after %v of 24 h", after)
			}
			last = time.Now()
			keys[creds.Leaf.Leaf.SerialNumber.String()] = true
		}
		stop()
		if len(keys) != 10 {
			t.Errorf("%d different certificates in 10 renewals", len(keys))
		}
		for i, call := range a.seen() {
			if byToken := call.token != ""; byToken != (i == 0) || call.shown.IsZero() != (i == 0) {
				t.Errorf("call %d: by token %v, showing %v", i, byToken, call.shown)
			}
		}
	})
}

// While the authority is away the old certificate stays, loudly; then all is
// well again, and nobody was run over.
func TestOutageOfTheAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAuthority(t)
		c, log := newCertifier(t, a)
		stop := start(t, c)
		first := c.Source.Load()
		a.set(func() { a.down = true })
		a.server.Stop()
		time.Sleep(20 * time.Hour)
		if c.Source.Load() != first {
			t.Error("the certificate changed")
		}
		n := log.count("keeping the old one")
		if hours := 20.0 - 17.2; float64(n) < hours*3600/46 || n > 6*3600/15 {
			t.Errorf("complained %d times", n)
		}
		stop()
	})
}

// An outage beyond the certificate's end: a token, not the dead certificate.
func TestExpiredCertificateFallsBackOnAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAuthority(t)
		c, _ := newCertifier(t, a)
		stop := start(t, c)
		a.set(func() { a.down = true })
		time.Sleep(25 * time.Hour)
		a.set(func() { a.down = false })
		time.Sleep(2 * longWait)
		if err := c.Source.Load().check(time.Now()); err != nil {
			t.Errorf("not recovered: %v", err)
		}
		calls := a.seen()
		if last := calls[len(calls)-1]; last.token != "good" || !last.shown.IsZero() {
			t.Errorf("last call %+v, want a token and no certificate", last)
		}
		stop()
	})
}

// The authority's clock is ahead: it refuses the certificate though it has not
// ended here. Certificates are signed by its clock as well.
func TestTokenWhereTheCertificateIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAuthority(t)
		c, log := newCertifier(t, a)
		stop := start(t, c)
		first := c.Source.Load()
		a.set(func() { a.skew = 10 * time.Hour })
		time.Sleep(18 * time.Hour)
		if c.Source.Load() == first {
			t.Error("not renewed")
		}
		calls := a.seen()
		if last := calls[len(calls)-1]; last.token != "good" {
			t.Errorf("last call %+v, want a token", last)
		}
		if log.count("set both by NTP") == 0 {
			t.Error("nothing was said about the clocks")
		}
		stop()
	})
}

func TestClockSkewIsNamedFromAMinuteOn(t *testing.T) {
	for skew, want := range map[time.Duration]int{0: 0, 30 * time.Second: 0, 2 * time.Minute: 1, -10 * time.Minute: 1} {
		synctest.Test(t, func(t *testing.T) {
			a := newTestAuthority(t)
			c, log := newCertifier(t, a)
			a.spoil = func(m *tullev1.CertifyResponse) { m.ServerTimeUnixMs = time.Now().Add(skew).UnixMilli() }
			if err := c.certifyByToken(context.Background()); err != nil {
				t.Fatal(err)
			}
			if got := log.count("set both by NTP"); got != want {
				t.Errorf("by %v: named %d times, want %d", skew, got, want)
			}
		})
	}
}

// An authority whose certificates are due at once is not asked in a tight loop.
func TestShortLivesDoNotSpin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAuthority(t)
		c, _ := newCertifier(t, a)
		a.change = func(c *x509.Certificate) { // two thirds are over before it is signed
			c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(5*time.Minute)
		}
		stop := start(t, c)
		time.Sleep(time.Minute)
		if n := len(a.seen()); n > 70 {
			t.Errorf("asked %d times in a minute", n)
		}
		stop()
	})
}

func TestRootsArePushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, next := newTestAuthority(t), newCA(t)
		c, log := newCertifier(t, a)
		stop := start(t, c)
		time.Sleep(time.Second)
		synctest.Wait()
		before := c.Source.Load()
		// Prepare: the new root is trusted, too. The certificate stays.
		a.set(func() { a.trusted = append(a.trusted, next) })
		synctest.Wait()
		now := c.Source.Load()
		if now == before || len(now.RootsDER) != 2 || now.Leaf.Leaf != before.Leaf.Leaf {
			t.Fatalf("roots: %d", len(now.RootsDER))
		}
		// The same set again is no news.
		a.set(func() {})
		synctest.Wait()
		if c.Source.Load() != now || log.count("trusted roots changed") != 1 {
			t.Error("the same roots made new credentials")
		}
		// Remove the old one before its leaves have ended: peers would refuse ours,
		// so there is another one at once.
		a.set(func() { a.ca, a.trusted = next, []*ca{next} })
		time.Sleep(time.Minute)
		if err := c.Source.Load().check(time.Now()); err != nil {
			t.Error(err)
		}
		stop()
	})
}

func TestBadRootsArePushed(t *testing.T) {
	for _, bad := range []*tullev1.Roots{
		{TrustDomain: testDomain}, {TrustDomain: testDomain, Certificates: [][]byte{{1}}}, {TrustDomain: "evil", Certificates: [][]byte{{1}}}, nil,
	} {
		c, _ := newCertifier(t, &authority{ca: newCA(t)})
		if _, err := c.roots(bad); err == nil {
			t.Errorf("%v: accepted", bad)
		}
	}
}

// The answer to a renewal that was under way while the roots changed must not
// bring the old set back.
func TestRenewalDoesNotUndoARootChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, next := newTestAuthority(t), newCA(t)
		c, _ := newCertifier(t, a)
		if err := c.certifyByToken(context.Background()); err != nil {
			t.Fatal(err)
		}
		c.Source.Update(func(old *Credentials) *Credentials { return NewCredentials(old.ID, old.Leaf, rootsOf(t, a.ca, next)) })
		if err := c.certify(context.Background(), c.leaf, ""); err != nil { // its answer knows one root
			t.Fatal(err)
		}
		if n := len(c.Source.Load().RootsDER); n != 2 {
			t.Errorf("%d roots, want both", n)
		}
	})
}
