package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// A stage is where servers and clients are put: Host with the mesh, Direct
// without. Names are the same on both: a server "web" is reached as "web" and
// "web.mesh".
type stage interface {
	// serve starts a server under a name and returns once it can be reached.
	serve(t *testing.T, s service) *process
	// client starts a program that calls others.
	client(t *testing.T, user string, argv ...string) *process
}

// service is a server to put on a stage.
type service struct {
	name  string
	port  int    // 0: not declared; argv says "listening" on stderr when it is
	user  string // "": root
	flags []string
	argv  []string
}

// play runs a client to its end.
func play(t *testing.T, on stage, argv ...string) result {
	t.Helper()
	return on.client(t, "", argv...).wait(t)
}

// peerCommand is the command line of one of the programs of internal/peer.
func peerCommand(args ...string) []string {
	return append([]string{self(), partPeer}, args...)
}

// scratch returns a new folder that every user may read and this one may write.
// Folders die with the run.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// write makes a file in dir and returns its path.
func write(t *testing.T, dir, name, format string, args ...any) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, format, args...), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
