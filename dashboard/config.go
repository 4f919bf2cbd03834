package dashboard

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"github.com/tulle-mesh/tulle/mesh"
)

// GCPercent is the garbage collector's setting (GOGC) of a process that has a
// Collector: it holds much that lives for long and makes little garbage, so
// memory is dearer than the collector's time.
const GCPercent = 20

// MemoryTarget is what such a process should try to stay below (see
// debug.SetMemoryLimit), in bytes: enough for a thousand proxies.
const MemoryTarget = 128 << 20

// Config says what a Collector may trust and how much it may keep.
type Config struct {
	// PeerID returns who the caller proved to be by its TLS connection.
	// Required: a proxy's own word for its identity is never taken.
	PeerID func(ctx context.Context) (mesh.ID, error)

	// HostAddresses are this machine's own addresses as workloads see them;
	// callers without an identity from there are shown as "host". May be empty.
	HostAddresses []netip.Addr

	MaxProxies   int          // proxies known at a time; 0: 2000
	MaxEdges     int          // edges kept apart for each proxy, the rest counts as "other"; 0: 512
	MaxSeries    int          // edges and replicas of the mesh kept apart over time, the rest counts as "other"; 0: 32768
	HistoryBytes int          // that the last hour may take before old slices are merged; 0: 16 MiB
	HistoryDir   string       // where the last hour is kept over a restart; "": nowhere
	Log          *slog.Logger // nil: nowhere
}

// Validate reports what the Config lacks.
func (c Config) Validate() error {
	var errs []error
	if c.PeerID == nil {
		errs = append(errs, errors.New("dashboard: Config.PeerID is required"))
	}
	if min(c.MaxProxies, c.MaxEdges, c.MaxSeries, c.HistoryBytes) < 0 {
		errs = append(errs, errors.New("dashboard: the limits of Config must not be negative"))
	}
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	for value, otherwise := range map[*int]int{&c.MaxProxies: 2000, &c.MaxEdges: 512, &c.MaxSeries: 32 << 10, &c.HistoryBytes: 16 << 20} {
		if *value == 0 {
			*value = otherwise
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}
