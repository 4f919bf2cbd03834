package e2e

import (
	"fmt"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// lan is a machine next to the host, outside of the mesh: a network namespace
// with two addresses on a network that only the host shares.
type lan struct{ holder *exec.Cmd }

// Addresses of the network between the host and the machine.
const (
	lanHost   = "192.0.2.1"
	lanFirst  = "192.0.2.10"
	lanSecond = "192.0.2.11"
)

func newLAN() (*lan, error) {
	l := &lan{holder: exec.Command("sleep", "infinity")}
	l.holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := l.holder.Start(); err != nil {
		return nil, err
	}
	script := fmt.Sprintf(`ip link add lan0 type veth peer name eth0 netns %[1]d
		ip address add %[2]s/24 dev lan0
		ip link set lan0 up
		nsenter --target %[1]d --net -- sh -ec "ip link set lo up
			ip address add %[3]s/24 dev eth0
			ip address add %[4]s/24 dev eth0
			ip link set eth0 up"`, l.holder.Process.Pid, lanHost, lanFirst, lanSecond)
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		l.close()
		return nil, fmt.Errorf("make the network next to the host: %w: %s", err, out)
	}
	return l, nil
}

// argv is the command line that runs a program on the machine.
func (l *lan) argv(argv ...string) []string {
	return append([]string{"nsenter", "--target", strconv.Itoa(l.holder.Process.Pid), "--net", "--"}, argv...)
}

// close takes the machine and the network away.
func (l *lan) close() {
	exec.Command("ip", "link", "del", "lan0").Run()
	l.holder.Process.Kill()
	l.holder.Wait()
}
