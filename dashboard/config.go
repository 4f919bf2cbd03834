package dashboard

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"github.com/tulle-mesh/tulle/mesh"
)

// Config says what a Collector may trust and how much it may keep.
type Config struct {
	// PeerID returns who the caller proved to be by its TLS connection.
	// Required: a proxy's own word for its identity is never taken.
	PeerID func(ctx context.Context) (mesh.ID, error)

	// HostAddresses are this machine's own addresses as workloads see them;
	// callers without an identity from there are shown as "host". May be empty.
	HostAddresses []netip.Addr

	MaxProxies int          // proxies known at a time; 0: 1000
	MaxEdges   int          // edges kept apart for each proxy, the rest counts as "other"; 0: 512
	Log        *slog.Logger // nil: nowhere
}

// Validate reports what the Config lacks.
func (c Config) Validate() error {
	var errs []error
	if c.PeerID == nil {
		errs = append(errs, errors.New("dashboard: Config.PeerID is required"))
	}
	if c.MaxProxies < 0 || c.MaxEdges < 0 {
		errs = append(errs, errors.New("dashboard: the limits of Config must not be negative"))
	}
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	if c.MaxProxies == 0 {
		c.MaxProxies = 1000
	}
	if c.MaxEdges == 0 {
		c.MaxEdges = 512
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}
