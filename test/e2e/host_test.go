package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Paths of a mesh that runs with its defaults.
const (
	runDir   = "/run/tulle"
	stateDir = "/var/lib/tulle"
	bridge   = "tulle0"
)

// Host is a `tulle up` and all that was started under it: the stage with the
// mesh.
type Host struct {
	up      *process
	flags   []string
	clients int // so many had a name of their own
}

// newHost starts the mesh. The test's end takes it down and fails if anything
// is left of it.
func newHost(t *testing.T, flags ...string) *Host {
	t.Helper()
	before := takeInventory(t)
	h := &Host{flags: flags}
	t.Cleanup(func() {
		if t.Failed() {
			h.complaints(t)
		}
		must(t, tulle("down")...)
		before.compare(t)
		if err := os.RemoveAll(stateDir); err != nil {
			t.Error(err)
		}
	})
	h.start(t)
	return h
}

// complaints logs what the proxies had to say, but for their good news.
func (h *Host) complaints(t *testing.T) {
	logs, _ := filepath.Glob(runDir + "/workloads/*/proxy.log")
	for _, log := range logs {
		text, _ := os.ReadFile(log)
		for line := range strings.Lines(string(text)) {
			if !strings.Contains(line, "level=INFO") {
				t.Logf("%s: %s", filepath.Base(filepath.Dir(log)), line)
			}
		}
	}
}

// start runs `tulle up` until it answers.
func (h *Host) start(t *testing.T) {
	t.Helper()
	h.up = start(t, tulle(append([]string{"up"}, h.flags...)...)...)
	eventually(t, func() error {
		select {
		case <-h.up.ended:
			t.Fatalf("tulle up ended: %s", h.up.result())
		default:
		}
		_, err := h.list()
		return err
	})
}

// tulle is a command line of the product.
func tulle(args ...string) []string {
	return append([]string{filepath.Join(os.Getenv("TULLE_BIN"), "tulle")}, args...)
}

// list asks the control plane what runs.
func (h *Host) list() (*tullev1.ListResponse, error) {
	conn, err := grpc.NewClient("unix://"+runDir+"/host.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return tullev1.NewHostClient(conn).List(ctx, &tullev1.ListRequest{})
}

// replicas returns the workloads of a service, or the one replica of that name,
// that have not ended.
func (h *Host) replicas(name string) []*tullev1.Workload {
	all, err := h.list()
	if err != nil {
		return nil
	}
	var found []*tullev1.Workload
	for _, w := range all.Workloads {
		ended := strings.HasPrefix(w.State, "exited")
		if (w.Service == name || w.Replica == name) && !ended {
			found = append(found, w)
		}
	}
	return found
}

// awaitReady waits until count replicas of a service are ready.
func (h *Host) awaitReady(t *testing.T, name string, count int) []*tullev1.Workload {
	t.Helper()
	var found []*tullev1.Workload
	eventually(t, func() error {
		found = h.replicas(name)
		ready := 0
		var states []string
		for _, w := range found {
			states = append(states, w.Replica+" "+w.State)
			if w.State == "ready" {
				ready++
			}
		}
		if ready == count && len(found) == count {
			return nil
		}
		return fmt.Errorf("%s: want %d ready replicas, have: %s", name, count, strings.Join(states, ", "))
	})
	return found
}

// runArgs is the command line of `tulle run` for a service.
func (s service) runArgs() []string {
	name := s.name
	if s.port != 0 {
		name = fmt.Sprintf("%s:%d", s.name, s.port)
	}
	args := append([]string{"run", name}, s.flags...)
	if s.user != "" {
		args = append(args, "--user", s.user)
	}
	return tulle(append(append(args, "--"), s.argv...)...)
}

func (h *Host) serve(t *testing.T, s service) *process {
	t.Helper()
	p := start(t, s.runArgs()...)
	if s.port == 0 {
		p.awaitText(t, p.stderr, "listening")
		return p
	}
	h.awaitReadyOf(t, p, s.name)
	return p
}

// awaitReadyOf waits for the one replica that p runs, and fails at once if p ends.
func (h *Host) awaitReadyOf(t *testing.T, p *process, name string) {
	t.Helper()
	eventually(t, func() error {
		select {
		case <-p.ended:
			t.Fatalf("%s ended: %s", strings.Join(p.cmd.Args, " "), p.result())
		default:
		}
		for _, w := range h.replicas(name) {
			if w.State == "ready" {
				return nil
			}
		}
		return fmt.Errorf("%s is not ready", name)
	})
}

func (h *Host) client(t *testing.T, user string, argv ...string) *process {
	t.Helper()
	h.clients++
	s := service{name: fmt.Sprintf("client%d", h.clients), user: user, argv: argv}
	return start(t, s.runArgs()...)
}

// down takes the mesh down and waits for the end of `tulle up`.
func (h *Host) down(t *testing.T) {
	t.Helper()
	if out, err := exec.Command(tulle()[0], "down").CombinedOutput(); err != nil {
		t.Errorf("tulle down: %v\n%s", err, out)
	}
	h.up.wait(t)
}

// awaitStarted waits until a service has a replica that runs.
func (h *Host) awaitStarted(t *testing.T, name string) {
	t.Helper()
	eventually(t, func() error {
		for _, w := range h.replicas(name) {
			if w.State != "starting" {
				return nil
			}
		}
		return fmt.Errorf("%s has not started", name)
	})
}
