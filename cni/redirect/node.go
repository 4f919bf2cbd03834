package redirect

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// DefaultPins is where the eBPF backend keeps what lives in the kernel.
const DefaultPins = "/sys/fs/bpf/tulle"

// loadRevision is of the programs in bpf/redirect.c, and has to grow with each
// change of them. Maps never change shape: what a new revision needs besides is a
// map of its own.
const loadRevision = 4

// ErrNewer is returned where a newer Tulle has loaded its programs.
var ErrNewer = errors.New("a newer tulle has loaded its eBPF programs; use that one, or take it down first: tulle down")

// Node is the machine as the eBPF backend sees it: programs at the root of
// cgroup2, and maps, pinned in one folder of a bpffs. All that matters is in the
// kernel, so a Node holds nothing open, many processes may have one of the same
// folder, and none of them has to live. Programs act on the network namespaces
// that were Applied to only; those of several folders do not notice each other.
//
//	Pins/maps/NAME        what the programs share
//	Pins/links/NAME       a program at the root of cgroup2
//	Pins/inbound/COOKIE   sk_lookup of the network namespace of that cookie
//	Pins/shared/COOKIE    the same, of a namespace that has Members
//	Pins/members/NUMBER-4 connect4 at a Member's cgroup, and -6
//
// The methods may be called by anybody at any time: they take turns by a lock
// on the folder.
type Node struct {
	Pins   string // folder that Load makes in a bpffs; "": DefaultPins
	Cgroup string // root of cgroup2; "": where it is mounted
}

func (n Node) pins() string {
	if n.Pins == "" {
		return DefaultPins
	}
	return n.Pins
}

func (n Node) maps() string    { return filepath.Join(n.pins(), "maps") }
func (n Node) links() string   { return filepath.Join(n.pins(), "links") }
func (n Node) inbound() string { return filepath.Join(n.pins(), "inbound") }
func (n Node) shared() string  { return filepath.Join(n.pins(), "shared") }
func (n Node) members() string { return filepath.Join(n.pins(), "members") }

// attachments are the programs at the root of cgroup2, by name. Those that make use
// of what others note come first: while a kernel gets them, nothing is noted.
var attachments = []struct {
	program string
	at      ebpf.AttachType
}{
	{"getpeername4", ebpf.AttachCgroupInet4GetPeername},
	{"getpeername6", ebpf.AttachCgroupInet6GetPeername},
	{"getsockname4", ebpf.AttachCgroupInet4GetSockname},
	{"getsockname6", ebpf.AttachCgroupInet6GetSockname},
	{"carry", ebpf.AttachCGroupSockOps},
	{"bind4", ebpf.AttachCGroupInet4Bind},
	{"bind6", ebpf.AttachCGroupInet6Bind},
	{"connect4", ebpf.AttachCGroupInet4Connect},
	{"connect6", ebpf.AttachCGroupInet6Connect},
}

// Load makes the machine ready for Apply. What is there already is kept; of an
// earlier revision the programs are exchanged in place, which no connection
// notices; a later one is left alone (ErrNewer). Where the calling thread's network
// namespace has Members that need HopSource6, it has to have that before.
func (n Node) Load() error { return n.load(loadRevision) }

func (n Node) load(revision uint32) error {
	if err := checkBPFFS(filepath.Dir(n.pins())); err != nil {
		return err
	}
	for _, dir := range []string{n.pins(), n.maps(), n.links(), n.inbound(), n.shared(), n.members()} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make a folder in the bpffs: %w", err)
		}
	}
	unlock, err := n.lock()
	if err != nil {
		return err
	}
	defer unlock()
	switch loaded, err := n.loaded(); {
	case err != nil:
		return err
	case loaded > revision:
		return ErrNewer
	case loaded == revision:
		return nil
	}
	return n.exchange(revision)
}

// loaded returns the revision that is loaded completely; 0 if none is.
func (n Node) loaded() (revision uint32, err error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(n.maps(), "revision"), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", n.maps(), err)
	}
	defer func() { _ = m.Close() }()
	err = m.Lookup(uint32(0), &revision)
	return revision, err
}

// exchange puts the programs of this build in place, and then says so.
func (n Node) exchange(revision uint32) error {
	cgroup, err := n.cgroup()
	if err != nil {
		return err
	}
	c, err := loadNode(n.maps())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := n.renewHops(); err != nil {
		return err
	}
	for _, a := range attachments {
		if err := n.attach(cgroup, a.program, a.at, c.Programs[a.program]); err != nil {
			return err
		}
	}
	if err := n.renewInstances(); err != nil {
		return err
	}
	return c.Maps["revision"].Put(uint32(0), revision)
}

// instances are the programs that are loaded once for each network namespace or
// Member; all others are at the root of cgroup2.
var instances = []string{progInbound, progMemberInbound, progMember4, progMember6}

// Names of programs in bpf/redirect.c.
const (
	progInbound       = "inbound"
	progMemberInbound = "member_inbound"
	progMember4       = "member_connect4"
	progMember6       = "member_connect6"
)

// loadNode loads the programs for the root of cgroup2, and loadInstance others, for
// the namespace of a cookie or the Member of a number. The maps are pinned in the
// folder pins, or were before; with "" they are this collection's own.
func loadNode(pins string) (*ebpf.Collection, error) {
	spec, err := loadKernel()
	if err != nil {
		return nil, err
	}
	for _, name := range instances {
		delete(spec.Programs, name)
	}
	delete(spec.Maps, ".rodata")
	delete(spec.Variables, "self")
	return newCollection(spec, pins)
}

func loadInstance(pins string, self uint64, names ...string) (*ebpf.Collection, error) {
	spec, err := loadKernel()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables["self"].Set(self); err != nil {
		return nil, err
	}
	for name := range spec.Programs {
		if !slices.Contains(names, name) {
			delete(spec.Programs, name)
		}
	}
	return newCollection(spec, pins)
}

func newCollection(spec *ebpf.CollectionSpec, pins string) (*ebpf.Collection, error) {
	for name, m := range spec.Maps {
		if pins != "" && name != ".rodata" {
			m.Pinning = ebpf.PinByName
		}
	}
	if err := rlimit.RemoveMemlock(); err != nil { // kernels before 5.11
		return nil, err
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: pins}})
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return nil, fmt.Errorf("%s is of another tulle; take that one down first: %w", pins, err)
	}
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("load eBPF programs (needs CAP_BPF and CAP_NET_ADMIN; run as root): %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("load eBPF programs: %w", err)
	}
	return c, nil
}

// attach pins a program at the root of cgroup2, or puts it in the place of its forerunner.
func (n Node) attach(cgroup, name string, at ebpf.AttachType, program *ebpf.Program) error {
	pin := filepath.Join(n.links(), name)
	err := renew(pin, program)
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ENOLINK) { // its cgroup has gone
		err = os.Remove(pin)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("exchange eBPF program %s: %w", name, err)
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: at, Program: program})
	if err != nil {
		return fmt.Errorf("attach eBPF program %s to %s: %w", name, cgroup, err)
	}
	defer func() { _ = l.Close() }()
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin eBPF program %s: %w", name, err)
	}
	return nil
}

// renew gives a pinned link another program.
func renew(pin string, program *ebpf.Program) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	return l.Update(program)
}

// renewInstances exchanges the programs of namespaces and Members.
func (n Node) renewInstances() error {
	for _, of := range []struct{ dir, suffix, program string }{
		{n.inbound(), "", progInbound},
		{n.shared(), "", progMemberInbound},
		{n.members(), suffix4, progMember4},
		{n.members(), suffix6, progMember6},
	} {
		numbers, err := numbers(of.dir, of.suffix)
		if err != nil {
			return err
		}
		for _, number := range numbers {
			if err := n.renewInstance(pin(of.dir, number, of.suffix), number, of.program); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n Node) renewInstance(pin string, number uint64, program string) error {
	c, err := loadInstance(n.maps(), number, program)
	if err != nil {
		return err
	}
	defer c.Close()
	err = renew(pin, c.Programs[program])
	if errors.Is(err, unix.ENOLINK) {
		return nil // its namespace or cgroup has gone; Collect will find it
	}
	return err
}

// pin is the path of a link that belongs to a namespace or a Member.
func pin(dir string, number uint64, suffix string) string {
	return filepath.Join(dir, strconv.FormatUint(number, 10)+suffix)
}

// numbers returns whose links are pinned in dir, living or not.
func numbers(dir, suffix string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []uint64
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if number, err := strconv.ParseUint(name, 10, 64); ok && err == nil {
			found = append(found, number)
		}
	}
	return found, nil
}

// Collect forgets the namespaces and Members that have gone. Nothing else notices
// their going.
func (n Node) Collect() error {
	unlock, err := n.lock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	t, err := n.tables()
	if errors.Is(err, errNotLoaded) {
		return nil // a Load or a Remove was killed: nobody has been let in yet, or nobody is any more
	}
	if err != nil {
		return err
	}
	defer t.close()
	return n.collect(t)
}

// collect is Collect for who has the lock.
func (n Node) collect(t *tables) error {
	living := map[uint64]bool{}
	var errs []error
	for _, of := range []struct{ dir, suffix string }{{n.members(), suffix4}, {n.members(), suffix6}, {n.inbound(), ""}} {
		if err := sweep(of.dir, of.suffix, living, &errs); err != nil {
			return errors.Join(append(errs, err)...) // who lives is not known: nobody is forgotten
		}
	}
	// Also those that have no program: an Apply or Remove that was killed.
	errs = append(errs, t.forgetMembers(func(number uint64) bool { return !living[number] }))
	errs = append(errs, n.leaveShared(t))
	if err := sweep(n.shared(), "", living, &errs); err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs,
		t.forget(func(number uint64, _ uint32) bool { return !living[number] }),
		forgetKeys[uint64, int64](t.pending, func(cookie uint64, _ int64) bool { return !living[cookie] }))
	return errors.Join(errs...)
}

// sweep removes pins of what has gone, and adds to living whose is still there. Its
// error means that it cannot tell; what went wrong with a single one goes to errs.
func sweep(dir, suffix string, living map[uint64]bool, errs *[]error) error {
	numbers, err := numbers(dir, suffix)
	if err != nil {
		return err
	}
	for _, number := range numbers {
		there, err := alive(pin(dir, number, suffix))
		if err == nil && !there {
			err = os.Remove(pin(dir, number, suffix))
		}
		living[number] = living[number] || there || err != nil
		*errs = append(*errs, err)
	}
	return nil
}

// alive tells whether the namespace or cgroup of a pinned link still is.
func alive(pin string) (bool, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return false, err
	}
	defer func() { _ = l.Close() }()
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	if ns := info.NetNs(); ns != nil {
		return ns.NetnsInode != 0, nil
	}
	cgroup := info.Cgroup()
	return cgroup != nil && cgroup.CgroupId != 0, nil
}

// Remove detaches everything and removes the folder. Connections that had been
// redirected go on; new ones pass in plaintext: end the workloads first.
func (n Node) Remove() error {
	unlock, err := n.lock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	if m, err := ebpf.LoadPinnedMap(filepath.Join(n.maps(), "revision"), nil); err == nil {
		// First of all: what is half gone must not count as loaded.
		err := m.Put(uint32(0), uint32(0))
		_ = m.Close()
		if err != nil {
			return err
		}
	}
	var errs []error
	for _, dir := range []string{n.members(), n.shared(), n.inbound(), n.links()} {
		pins, err := filepath.Glob(filepath.Join(dir, "*"))
		errs = append(errs, err)
		for _, pin := range pins {
			errs = append(errs, detach(pin))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err // the maps are still in use
	}
	return os.RemoveAll(n.pins())
}

// detach takes a pinned link away, at once: left to itself, the kernel takes its time.
func detach(pin string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) {
		return fmt.Errorf("detach %s: %w", pin, err)
	}
	return os.Remove(pin)
}

// lock waits for its turn. That the folder is not there is fs.ErrNotExist.
func (n Node) lock() (unlock func(), err error) {
	dir, err := os.Open(n.pins())
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(dir.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("lock %s: %w", n.pins(), err)
	}
	return func() { _ = dir.Close() }, nil
}

func (n Node) cgroup() (string, error) {
	if n.Cgroup != "" {
		return n.Cgroup, nil
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer mounts.Close()
	return cgroupMount(mounts, func(dir string) bool { return isFS(dir, unix.CGROUP2_SUPER_MAGIC) == nil })
}

// cgroupMount finds cgroup2 in a mountinfo, wherever it is: at /sys/fs/cgroup, or
// beside the hierarchies of cgroup v1. visible tells a mount from one that another hides.
func cgroupMount(mountinfo io.Reader, visible func(dir string) bool) (string, error) {
	found, root := "", ""
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		// 36 35 98:0 ROOT MOUNTPOINT OPTIONS… - TYPE SOURCE OPTIONS (proc_pid_mountinfo(5))
		before, after, _ := strings.Cut(lines.Text(), " - ")
		f := strings.Fields(before)
		if len(f) < 5 || !strings.HasPrefix(after, "cgroup2 ") || !visible(f[4]) {
			continue
		}
		if found == "" || len(f[3]) < len(root) { // a container may see parts of the tree, too
			found, root = f[4], f[3]
		}
	}
	if found != "" {
		return found, nil
	}
	return "", errors.New("cgroup2 is not mounted; type: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

// ErrNoBPFFS is returned where there is no bpffs to pin in.
var ErrNoBPFFS = errors.New("no bpffs is mounted")

func checkBPFFS(dir string) error {
	err := isFS(dir, unix.BPF_FS_MAGIC)
	if errors.Is(err, errOtherFS) {
		return fmt.Errorf("%s: %w; type: mount -t bpf bpf %s", dir, ErrNoBPFFS, dir)
	}
	return err
}

var errOtherFS = errors.New("another file system")

// isFS tells whether dir is in a file system of a kind; a mount may be hidden by another one.
func isFS(dir string, magic uint32) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if uint32(st.Type) != magic {
		return errOtherFS
	}
	return nil
}
