// Package browser_test looks at the dashboard with a real browser: Debian's
// Chromium, driven by playwright-core, in front of a real mesh with the demo's
// programs. The tests themselves are *.test.mjs.
package browser_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// onAHostOfItsOwn runs where nothing of this machine can be touched: in network,
// mount and process namespaces that stand for a host without uplink.
const onAHostOfItsOwn = `set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
ip link set lo up
exec "$@"
`

func TestBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("runs real programs and a browser for a minute")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root for namespaces; type: sudo ./just test")
	}
	for _, program := range []string{"chromium", "node", "redis-server", "unshare", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v; ./just test installs it", err)
		}
	}
	if _, err := os.Stat("../../node_modules/playwright-core"); err != nil {
		t.Skipf("%v; ./just test fetches it", err)
	}
	bin := t.TempDir()
	build(t, bin, "../../cmd/tulle", "../../cmd/tulle-proxy", "../demo/shop")

	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", onAHostOfItsOwn, "sh", "node", "--test", "--test-reporter=spec", "dashboard.test.mjs")
	cmd.Env = append(os.Environ(), "TULLE_BIN="+bin)
	cmd.WaitDelay = 10 * time.Second // for what still holds the pipe when all is killed
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func build(t *testing.T, into string, packages ...string) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Clean(into) + "/"}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
