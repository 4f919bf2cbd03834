package mtls

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// Certifier keeps a Source supplied: it gets the first certificate with a join
// token, renews it well before it ends, and follows the set of trusted roots.
// Keys are made here and never leave the process.
type Certifier struct {
	ID      mesh.ID
	Control string                                    // address of the control plane's gRPC
	Roots   Roots                                     // whom to trust before the first answer
	Token   func(ctx context.Context) (string, error) // gets a join token
	Source  *Source
	Log     *slog.Logger

	dialer  dialer
	connect func(ctx context.Context, addr string) (net.Conn, error) // nil: the dialer's
}

const (
	certifyTimeout = 10 * time.Second
	skewAlarm      = time.Minute
	// renewPause keeps an authority whose certificates are due at once from
	// being asked as fast as it answers.
	renewPause = time.Second
	// longestNap bounds how long a change of the clock (a suspended machine, a
	// step by NTP) goes unnoticed: timers don't see it.
	longestNap = time.Minute
)

// Dial returns a client of the control plane. It proves the Source's current
// identity, if there is one, whenever it (re)connects. The caller closes it.
func (c *Certifier) Dial() (*grpc.ClientConn, error) { return c.dial(c.leaf) }

// leaf is what the certifier shows of itself. A certificate that has ended
// would be refused, and nothing could be asked for at all.
func (c *Certifier) leaf(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if now := c.Source.Load(); now != nil && time.Now().Before(now.Leaf.Leaf.NotAfter) {
		return &now.Leaf, nil
	}
	return &tls.Certificate{}, nil
}

// nameless shows nothing: a token replaces a certificate that the authority may
// refuse for reasons unknown here, by its clock or its roots.
func nameless(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }

func (c *Certifier) dial(show func(*tls.CertificateRequestInfo) (*tls.Certificate, error)) (*grpc.ClientConn, error) {
	control := mesh.ControlID(c.ID.TrustDomain)
	conf := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		CurvePreferences:   []tls.CurveID{tls.X25519MLKEM768},
		InsecureSkipVerify: true, // VerifyConnection does more, and also for resumed sessions
		VerifyConnection: func(cs tls.ConnectionState) error {
			roots := c.Roots.Pool
			if now := c.Source.Load(); now != nil {
				roots = now.Roots
			}
			got, err := mesh.VerifyPeer(cs.PeerCertificates, roots, c.ID.TrustDomain, x509.ExtKeyUsageServerAuth, time.Now())
			if err != nil {
				return err
			}
			if got != control {
				return fmt.Errorf("%w: expected %s, got %s", ErrOtherIdentity, control, got)
			}
			return nil
		},
		GetClientCertificate: show,
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: controlBackoff, MinConnectTimeout: 5 * time.Second}),
		grpc.WithReadBufferSize(4 << 10), grpc.WithWriteBufferSize(4 << 10),
		grpc.WithDisableServiceConfig(),
	}
	connect := c.dialer.connect
	if c.connect != nil {
		connect = c.connect
	}
	options = append(options, grpc.WithContextDialer(connect))
	return grpc.NewClient("passthrough:///"+c.Control, options...)
}

// First gets the first certificate, trying until ctx ends.
func (c *Certifier) First(ctx context.Context) error {
	for wait := newBackoff(idleWait); ; {
		err := c.certifyByToken(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		c.Log.Error("no certificate yet: traffic waits", "control", c.Control, "error", err)
		if err := wait.sleep(ctx); err != nil {
			return err
		}
	}
}

// Run renews, and follows the trusted roots, until ctx ends. conn is a client of
// the control plane made by Dial after First.
func (c *Certifier) Run(ctx context.Context, conn *grpc.ClientConn) error {
	var following sync.WaitGroup
	following.Go(func() { c.followRoots(ctx, conn) })
	defer following.Wait()
	for {
		leaf := c.Source.Load().Leaf.Leaf
		at := mesh.RenewAt(leaf.NotBefore, leaf.NotAfter, mathrand.Float64())
		if err := c.untilDue(ctx, at); err != nil {
			return err
		}
		if err := c.renewUntilDone(ctx, leaf); err != nil {
			return err
		}
		if err := sleep(ctx, renewPause); err != nil {
			return err
		}
	}
}

// untilDue waits until at by the wall clock, or until peers would refuse the
// certificate: the root it leads to may be trusted no more.
func (c *Certifier) untilDue(ctx context.Context, at time.Time) error {
	for {
		creds, changed := c.Source.Watch()
		if err := creds.check(time.Now()); err != nil {
			c.Log.Error("peers would refuse the certificate; asking for another one", "error", err)
			return nil
		}
		left := time.Until(at)
		if left <= 0 {
			return nil
		}
		nap := time.NewTimer(min(left, longestNap))
		select {
		case <-nap.C:
		case <-changed:
			nap.Stop()
		case <-ctx.Done():
			nap.Stop()
			return ctx.Err()
		}
	}
}

// renewUntilDone tries until there is a new certificate or ctx ends.
func (c *Certifier) renewUntilDone(ctx context.Context, leaf *x509.Certificate) error {
	for wait := newBackoff(longWait); ; {
		err := c.renew(ctx, leaf)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.Log.Error("certificate not renewed; keeping the old one", "ends", leaf.NotAfter.UTC().Format(time.RFC3339), "error", err)
		if err := wait.sleep(ctx); err != nil {
			return err
		}
	}
}

// renew proves itself by the certificate that it holds, and by a token where
// that does not do: it has ended, its root is gone, or the authority's clock
// says so.
func (c *Certifier) renew(ctx context.Context, leaf *x509.Certificate) error {
	if !time.Now().Before(leaf.NotAfter) {
		return c.certifyByToken(ctx)
	}
	err := c.certify(ctx, c.leaf, "")
	switch status.Code(err) {
	case codes.Unauthenticated, codes.Unavailable: // a refused handshake reads as Unavailable
		if again := c.certifyByToken(ctx); again != nil {
			return errors.Join(err, again)
		}
		return nil
	}
	return err
}

func (c *Certifier) certifyByToken(ctx context.Context) error {
	asking, cancel := context.WithTimeout(ctx, certifyTimeout)
	defer cancel()
	token, err := c.Token(asking)
	if err != nil {
		return fmt.Errorf("get join token: %w", err)
	}
	return c.certify(ctx, nameless, token)
}

// certify uses a connection of its own: one made under an older certificate
// would still show that.
func (c *Certifier) certify(ctx context.Context, show func(*tls.CertificateRequestInfo) (*tls.Certificate, error), token string) error {
	ctx, cancel := context.WithTimeout(ctx, certifyTimeout)
	defer cancel()
	conn, err := c.dial(show)
	if err != nil {
		return err
	}
	defer conn.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	answer, err := tullev1.NewIdentityClient(conn).Certify(ctx, &tullev1.CertifyRequest{Csr: csr, Token: token})
	if err != nil {
		return err
	}
	return c.adopt(answer, key)
}

// adopt checks what the authority sent before anything depends on it.
func (c *Certifier) adopt(answer *tullev1.CertifyResponse, key *ecdsa.PrivateKey) error {
	roots, err := c.roots(answer.GetRoots())
	if err != nil {
		return err
	}
	chain, err := parseChain(answer.GetChain())
	if err != nil {
		return err
	}
	now := time.Now()
	if there := answer.GetServerTimeUnixMs(); there != 0 {
		if skew := now.Sub(time.UnixMilli(there)); skew.Abs() > skewAlarm {
			c.Log.Error("this clock and the control plane's differ; set both by NTP", "by", skew.Round(time.Second))
		}
	}
	if err := verifyOwn(chain, roots.Pool, c.ID, now); err != nil {
		return err
	}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		return errors.New("own certificate: made for another key")
	}
	leaf := tls.Certificate{Certificate: answer.GetChain(), PrivateKey: key, Leaf: chain[0]}
	c.Source.Update(func(old *Credentials) *Credentials {
		// The set of roots that followRoots has put there may be newer than the
		// answer; it goes on unless it does not know the new certificate yet.
		if old != nil && verifyOwn(chain, old.Roots, c.ID, now) == nil {
			roots = Roots{Pool: old.Roots, DER: old.RootsDER}
		}
		return NewCredentials(c.ID, leaf, roots)
	})
	c.Log.Info("certified", "identity", c.ID.String(), "until", chain[0].NotAfter.UTC().Format(time.RFC3339))
	return nil
}

// roots reads a set of roots that the authority sent.
func (c *Certifier) roots(m *tullev1.Roots) (Roots, error) {
	if m.GetTrustDomain() != c.ID.TrustDomain {
		return Roots{}, fmt.Errorf("trusted roots of %q, not of our trust domain %q", m.GetTrustDomain(), c.ID.TrustDomain)
	}
	return NewRoots(m.GetCertificates())
}

// followRoots keeps the trusted roots at what the authority says.
func (c *Certifier) followRoots(ctx context.Context, conn *grpc.ClientConn) {
	for wait := newBackoff(longWait); ; {
		err := c.watchRoots(ctx, conn, wait)
		if ctx.Err() != nil {
			return
		}
		c.Log.Debug("watch of trusted roots ended", "error", err)
		if wait.sleep(ctx) != nil {
			return
		}
	}
}

func (c *Certifier) watchRoots(ctx context.Context, conn *grpc.ClientConn, wait *backoff) error {
	stream, err := tullev1.NewIdentityClient(conn).WatchRoots(ctx, &tullev1.WatchRootsRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		wait.reset()
		roots, err := c.roots(message)
		if err != nil {
			c.Log.Error("trusted roots not changed", "error", err)
			continue
		}
		c.Source.Update(func(old *Credentials) *Credentials {
			if sameRoots(old.RootsDER, roots.DER) {
				return old
			}
			c.Log.Info("trusted roots changed", "roots", len(roots.DER))
			return NewCredentials(old.ID, old.Leaf, roots)
		})
	}
}
