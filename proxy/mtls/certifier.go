package mtls

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
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
}

const (
	certifyTimeout = 10 * time.Second
	skewAlarm      = time.Minute
)

// Dial returns a client of the control plane. It proves the Source's current
// identity, if there is one, whenever it (re)connects. The caller closes it.
func (c *Certifier) Dial() (*grpc.ClientConn, error) {
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
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			// One that has ended would be refused, and the join token that is to
			// replace it would never get through.
			if now := c.Source.Load(); now != nil && time.Now().Before(now.Leaf.Leaf.NotAfter) {
				return &now.Leaf, nil
			}
			return &tls.Certificate{}, nil
		},
	}
	return grpc.NewClient("passthrough:///"+c.Control,
		grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: controlBackoff, MinConnectTimeout: 5 * time.Second}),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10),
		grpc.WithDisableServiceConfig(),
	)
}

// First gets the first certificate, trying until ctx ends.
func (c *Certifier) First(ctx context.Context) error {
	for wait := newBackoff(); ; {
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

// Run renews until ctx ends. conn is a client of the control plane made by Dial
// after First.
func (c *Certifier) Run(ctx context.Context, conn *grpc.ClientConn) error {
	go c.followRoots(ctx, conn)
	client := tullev1.NewIdentityClient(conn)
	for wait := newBackoff(); ; {
		leaf := c.Source.Load().Leaf.Leaf
		at := mesh.RenewAt(leaf.NotBefore, leaf.NotAfter, mathrand.Float64())
		if err := sleep(ctx, time.Until(at)); err != nil {
			return err
		}
		err := c.renew(ctx, client, leaf)
		if err == nil {
			wait = newBackoff()
			continue
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

// renew proves itself by the certificate that it holds, as long as that is valid.
func (c *Certifier) renew(ctx context.Context, client tullev1.IdentityClient, leaf *x509.Certificate) error {
	if time.Now().Before(leaf.NotAfter) {
		err := c.certify(ctx, client, "")
		if status.Code(err) != codes.Unauthenticated {
			return err
		}
	}
	return c.certifyByToken(ctx)
}

// certifyByToken uses a connection of its own: one made under an older
// certificate would still show that.
func (c *Certifier) certifyByToken(ctx context.Context) error {
	token, err := c.Token(ctx)
	if err != nil {
		return fmt.Errorf("get join token: %w", err)
	}
	conn, err := c.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	return c.certify(ctx, tullev1.NewIdentityClient(conn), token)
}

func (c *Certifier) certify(ctx context.Context, client tullev1.IdentityClient, token string) error {
	ctx, cancel := context.WithTimeout(ctx, certifyTimeout)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	answer, err := client.Certify(ctx, &tullev1.CertifyRequest{Csr: csr, Token: token}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	return c.adopt(answer, key)
}

// adopt checks what the authority sent before anything depends on it.
func (c *Certifier) adopt(answer *tullev1.CertifyResponse, key *ecdsa.PrivateKey) error {
	roots, err := NewRoots(answer.GetRoots().GetCertificates())
	if err != nil {
		return err
	}
	var chain []*x509.Certificate
	for _, der := range answer.GetChain() {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("parse own certificate: %w", err)
		}
		chain = append(chain, cert)
	}
	now := time.Now()
	if skew := now.Sub(time.UnixMilli(answer.GetServerTimeUnixMs())); skew.Abs() > skewAlarm {
		c.Log.Error("this clock and the control plane's differ; set both by NTP", "by", skew.Round(time.Second))
	}
	id, err := mesh.VerifyPeer(chain, roots.Pool, c.ID.TrustDomain, x509.ExtKeyUsageServerAuth, now)
	if err != nil {
		return fmt.Errorf("own certificate: %w", err)
	}
	if id != c.ID {
		return fmt.Errorf("own certificate: %w: expected %s, got %s", ErrOtherIdentity, c.ID, id)
	}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		return fmt.Errorf("own certificate: made for another key")
	}
	leaf := tls.Certificate{Certificate: answer.GetChain(), PrivateKey: key, Leaf: chain[0]}
	c.Source.Store(NewCredentials(c.ID, leaf, roots))
	c.Log.Info("certified", "identity", c.ID.String(), "until", chain[0].NotAfter.UTC().Format(time.RFC3339))
	return nil
}

// followRoots keeps the trusted roots at what the authority says.
func (c *Certifier) followRoots(ctx context.Context, conn *grpc.ClientConn) {
	for wait := newBackoff(); ; {
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
		roots, err := NewRoots(message.GetCertificates())
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
