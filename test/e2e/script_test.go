package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// TestScript runs testdata/script/*.txtar: what a user types, and what comes
// back. Each script has the host for itself and has to leave it as it was. To
// the commands of testscript it adds
//
//	until PATTERN COMMAND…   repeat a command until its output matches
//	mesh FLAGS…              tulle up in the background, with these flags
//	lan COMMAND…             run a server on a machine next to the host, 192.0.2.10 and .11
//
// and on the path are tulle, tulle-proxy and peer (internal/peer).
func TestScript(t *testing.T) {
	tools := scratch(t)
	write(t, tools, "peer", "#!/bin/sh\nexec %s %s \"$@\"\n", self(), partPeer)
	if err := os.Chmod(tools+"/peer", 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	testscript.RunT(serial{t}, testscript.Params{
		Files: files,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", os.Getenv("TULLE_BIN")+":"+tools+":"+os.Getenv("PATH"))
			env.Setenv("HOME", env.WorkDir)
			env.Values[lanKey{}] = &lan{}
			// Other users have to read the scripts' files.
			if err := os.Chmod(env.WorkDir, 0o777); err != nil {
				return err
			}
			script := env.T().(serial)
			before := takeInventory(script.T)
			// A command that hangs ends, at the latest, with the mesh.
			watchdog := time.AfterFunc(2*patience, func() {
				script.T.Errorf("not at its end after %v; taking the mesh down", 2*patience)
				exec.Command(tulle()[0], "down").Run()
			})
			env.Defer(func() {
				watchdog.Stop()
				exec.Command(tulle()[0], "down").Run()
				unix.Unmount(stateDir, unix.MNT_DETACH)
				before.compare(script.T)
				os.RemoveAll(stateDir)
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"until": until, "mesh": meshCommand, "lan": lanCommand},
	})
}

// serial runs the scripts one after the other: they share the host.
type serial struct{ *testing.T }

func (s serial) Parallel()     {}
func (s serial) Verbose() bool { return testing.Verbose() }
func (s serial) Run(name string, f func(testscript.T)) {
	s.T.Run(name, func(t *testing.T) { f(serial{t}) })
}

func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN COMMAND…")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	var out []byte
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		cmd := exec.Command(lookIn(ts.Getenv("PATH"), args[1]), args[2:]...)
		cmd.Dir = ts.MkAbs(".")
		cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"))
		if out, _ = cmd.CombinedOutput(); pattern.Match(out) {
			return
		}
	}
	ts.Fatalf("%v never printed %q; last:\n%s", args[1:], args[0], out)
}

func meshCommand(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(ts.Exec("tulle", append([]string{"up", "-d"}, args...)...))
}

type lanKey struct{}

func lanCommand(ts *testscript.TestScript, neg bool, args []string) {
	machine := ts.Value(lanKey{}).(*lan)
	if machine.holder == nil {
		made, err := newLAN()
		ts.Check(err)
		*machine = *made
		ts.Defer(machine.close)
	}
	if len(args) == 0 {
		return
	}
	cmd := exec.Command("nsenter", machine.argv(args...)[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"))
	ts.Check(cmd.Start())
	ts.Defer(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

// lookIn finds a program on a path other than the test's own.
func lookIn(path, name string) string {
	for _, dir := range filepath.SplitList(path) {
		if file := filepath.Join(dir, name); fileExists(file) == nil {
			return file
		}
	}
	return name
}
