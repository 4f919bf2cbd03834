package discovery

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"syscall"
	"time"
)

// SetCatalog replaces all services of the catalog at once. On an error the old
// ones stay.
func (s *State) SetCatalog(catalog *CatalogServices) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkCatalogLocked(catalog); err != nil {
		return err
	}
	old := s.Load()
	listed := make(map[string]bool)
	for _, c := range catalog.Services {
		listed[c.Name] = true
	}
	d := newDraft(old)
	for _, service := range old.Services() {
		if service.Source == Catalog && !listed[service.Name] {
			d.drop(service.Name)
		}
	}
	// Two steps: an address may move from one service to another.
	added, err := s.catalogServicesLocked(catalog)
	if err != nil {
		return err
	}
	for _, service := range added {
		d.drop(service.Name)
	}
	for _, service := range added {
		d.put(service)
	}
	for _, service := range old.Services() {
		if service.Source == Catalog && !listed[service.Name] {
			s.vips.free(service.VIP4, service.VIP6)
		}
	}
	s.snapshot.Store(d.Snapshot)
	return nil
}

// checkCatalogLocked finds what contradicts the services that run.
func (s *State) checkCatalogLocked(catalog *CatalogServices) error {
	var errs []error
	names := s.Load().names
	for _, c := range catalog.Services {
		t, ok := names[c.Name]
		switch {
		case ok && t.replica != nil:
			errs = append(errs, fmt.Errorf("%s:%d: service %q: %w by a replica that runs", catalog.File, c.Line, c.Name, ErrNameTaken))
		case ok && t.service.Source == Run:
			errs = append(errs, fmt.Errorf("%s:%d: service %q: %w by a service that runs; rename it, or type: tulle stop %s", catalog.File, c.Line, c.Name, ErrNameTaken, c.Name))
		}
		for _, e := range c.Endpoints {
			if s.ownsAddr(e.Addr) {
				errs = append(errs, fmt.Errorf("%s:%d: service %q: address %s is in the mesh's own network; what runs there has a name already", catalog.File, c.Line, c.Name, e.Addr))
			}
		}
	}
	return errors.Join(errs...)
}

func (s *State) ownsAddr(addr netip.Addr) bool {
	for _, reserved := range s.config.Reserved {
		if addr == reserved {
			return false // the host itself: whatever listens on it is no workload
		}
	}
	for _, p := range []netip.Prefix{s.config.Replicas4, s.config.Replicas6, s.config.VIPs4, s.config.VIPs6} {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// catalogServicesLocked returns those services that are new or have changed,
// with their addresses. On an error no address is taken.
func (s *State) catalogServicesLocked(catalog *CatalogServices) (added []*Service, err error) {
	var fresh []*Service
	for _, c := range catalog.Services {
		service := &Service{
			Name:      c.Name,
			Namespace: s.config.Namespace,
			Source:    Catalog,
			Ports:     c.Ports,
			Protocol:  c.Protocol,
			Endpoints: c.Endpoints,
		}
		if known := s.Load().Service(c.Name); known != nil {
			service.VIP4, service.VIP6 = known.VIP4, known.VIP6
			if !reflect.DeepEqual(service, known) {
				added = append(added, service)
			}
			continue
		}
		if err := s.addressLocked(service, nil, JoinRequest{}); err != nil {
			for _, f := range fresh {
				s.vips.free(f.VIP4, f.VIP6)
			}
			return nil, fmt.Errorf("%s:%d: %w", catalog.File, c.Line, err)
		}
		fresh = append(fresh, service)
		added = append(added, service)
	}
	return added, nil
}

// readBounded reads a catalog file. Errors name it.
func readBounded(path string) ([]byte, error) {
	// O_NONBLOCK: a FIFO must not stall us.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("catalog: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("catalog: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("catalog %s: not a regular file", path)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxCatalogSize+1))
	if err != nil {
		return nil, fmt.Errorf("catalog: %w", err)
	}
	return content, nil
}

// CatalogFile keeps a State's catalog as a file says.
type CatalogFile struct {
	Path     string
	State    *State
	Interval time.Duration // between two looks at the file; 0: 1 s
	Log      *slog.Logger  // nil: slog.Default()

	tried   [sha256.Size]byte // of the content last read
	refused *CatalogServices  // what it says, if only a service that runs stands against it
	problem string            // logged last
}

// Load reads the file for the first time; an error is for the user who named it.
func (c *CatalogFile) Load() error {
	content, err := readBounded(c.Path)
	if err != nil {
		return err
	}
	return c.apply(content)
}

func (c *CatalogFile) apply(content []byte) error {
	c.tried, c.refused = sha256.Sum256(content), nil
	catalog, err := ParseCatalog(c.Path, content)
	if err != nil {
		return err
	}
	return c.set(catalog)
}

func (c *CatalogFile) set(catalog *CatalogServices) error {
	c.refused = nil
	err := c.State.SetCatalog(catalog)
	if err != nil {
		c.refused = catalog
	}
	return err
}

// Run follows the file until ctx ends. While it cannot be used, the last good
// catalog stays and the log says why. The file is read rather than watched:
// editors and configuration tools replace it in too many ways, and a read of a
// small file once a second costs nothing.
func (c *CatalogFile) Run(ctx context.Context) error {
	interval := c.Interval
	if interval == 0 {
		interval = time.Second
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			c.look()
		case <-ctx.Done():
			return nil
		}
	}
}

// look reads the file once and applies it if it has changed. What was refused
// because of a service that runs is tried again: that may have ended.
func (c *CatalogFile) look() {
	content, err := readBounded(c.Path)
	switch {
	case err != nil:
		c.tried, c.refused = [sha256.Size]byte{}, nil // once it is back, it is news
	case sha256.Sum256(content) != c.tried:
		err = c.apply(content)
	case c.refused != nil:
		err = c.set(c.refused)
	default:
		return
	}
	c.report(err)
}

// report logs a change, or why there is none: once, not each second.
func (c *CatalogFile) report(err error) {
	log := c.Log
	if log == nil {
		log = slog.Default()
	}
	switch {
	case err == nil:
		c.problem = ""
		log.Info("the catalog has changed", "file", c.Path, "services", len(c.State.Load().Services()))
	case err.Error() != c.problem:
		c.problem = err.Error()
		log.Error("the catalog cannot be used; the last good one stays until the file is mended", "file", c.Path, "reason", err)
	}
}
