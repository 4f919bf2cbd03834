package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/journal"
	"github.com/tulle-mesh/tulle/cmd/tulle/network"
	"github.com/tulle-mesh/tulle/cmd/tulle/workload"
)

// record is what the disk holds about a replica. It is written before the
// replica makes anything, so that its remains can be found after any crash.
type record struct {
	Replica  string     `json:"replica"`
	Service  string     `json:"service"`
	Ports    []uint16   `json:"ports,omitempty"`
	Strict   bool       `json:"strict,omitempty"`
	Remove   bool       `json:"remove,omitempty"`  // --rm
	OnHost   bool       `json:"on_host,omitempty"` // --network host
	Command  []string   `json:"command"`
	Addr4    netip.Addr `json:"address4"`
	Addr6    netip.Addr `json:"address6"`
	VIP4     netip.Addr `json:"service_address4"`
	VIP6     netip.Addr `json:"service_address6"`
	Pid      int        `json:"pid"`       // of its tulle run
	PidStart uint64     `json:"pid_start"` // clock ticks since boot
	Started  int64      `json:"started"`   // unix seconds
	Exited   bool       `json:"exited,omitempty"`
	ExitCode int        `json:"exit_code,omitempty"`
}

// alive tells whether the replica's `tulle run` is there.
func (r *record) alive() bool { return !r.Exited && workload.Alive(r.Pid, r.PidStart) }

// sweep removes what a replica has left behind whose `tulle run` is gone.
func (r *record) sweep() error {
	if r.OnHost {
		return workload.SweepHost(r.Replica, r.Pid, r.PidStart, BridgeName, r.Addr4, r.Addr6)
	}
	return workload.Sweep(r.Replica, r.Pid, r.PidStart, network.LinkName(r.Addr4))
}

func (r *record) path(run string) string {
	return filepath.Join(WorkloadDir(run, r.Replica), "state.json")
}

func (r *record) save(run string) error {
	if err := os.MkdirAll(WorkloadDir(run, r.Replica), 0o700); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return journal.WriteFile(r.path(run), append(data, '\n'))
}

// roomFor says what to type where a file could not be written for want of room.
func roomFor(err error, dir string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return command.WithHint(err, "free some space there; how much there is: df -h "+dir)
	}
	return err
}

func (r *record) erase(run string) error { return os.RemoveAll(WorkloadDir(run, r.Replica)) }

// loadRecords reads all records. A file that makes no sense is reported, and
// the others are returned all the same.
func loadRecords(run string) ([]*record, error) {
	paths, err := filepath.Glob(filepath.Join(run, "workloads", "*", "state.json"))
	if err != nil {
		return nil, err
	}
	var records []*record
	var errs []error
	for _, path := range paths {
		var r record
		if err := readJSON(path, &r); err != nil {
			errs = append(errs, err)
			continue
		}
		records = append(records, &r)
	}
	return records, errors.Join(errs...)
}

// up is what the disk holds about the daemon.
type up struct {
	Pid      int          `json:"pid"`
	PidStart uint64       `json:"pid_start"`
	Network4 netip.Prefix `json:"network4"`
	Network6 netip.Prefix `json:"network6"`
}

// loadUp returns nil if no daemon has written anything.
func loadUp(run string) (*up, error) {
	var u up
	err := readJSON(upPath(run), &u)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return &u, err
}

func (u *up) save(run string) error {
	data, err := json.MarshalIndent(u, "", "  ")
	if err != nil {
		return err
	}
	return journal.WriteFile(upPath(run), append(data, '\n'))
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Replicas returns the names of the replicas on record that are called name or
// belong to the service of that name.
func Replicas(run, name string) ([]string, error) {
	records, err := loadRecords(run)
	var found []string
	for _, r := range records {
		if r.Replica == name || r.Service == name {
			found = append(found, r.Replica)
		}
	}
	if len(found) > 0 {
		err = nil
	}
	return found, err
}

// Ended tells whether a replica is on record no longer as running.
func Ended(run, replica string) bool {
	var r record
	if err := readJSON((&record{Replica: replica}).path(run), &r); err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return !r.alive()
}

// NameServer returns where the daemon of a run directory serves names.
func NameServer(run string) (netip.AddrPort, error) {
	u, err := loadUp(run)
	if err == nil && u == nil {
		err = fs.ErrNotExist
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("the daemon's record: %w", err)
	}
	return netip.AddrPortFrom(gateway(u.Network4).Addr(), dnsPort), nil
}
