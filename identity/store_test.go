package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func openDir(dir string, clock *testClock) (*Authority, error) {
	return Open(Config{Dir: dir, TrustDomain: testDomain, Now: clock.Now, Log: discard})
}

func TestOpenKeepsTheAuthority(t *testing.T) {
	dir, clock := filepath.Join(t.TempDir(), "a", "ca"), newClock()
	first, err := openDir(dir, clock)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{"": 0o700, keyFile: 0o600, rootsFile: 0o600} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%q has mode %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	second, err := openDir(dir, clock)
	if err != nil {
		t.Fatal(err)
	}
	if !first.Roots().Certificates[0].Equal(second.Roots().Certificates[0]) {
		t.Error("the second Open has another root")
	}
	issued, err := second.Sign(newCSR(t, newKey(t), webID), webID, clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verify(issued.Chain, first.Roots(), clock.Now()); err != nil {
		t.Error(err)
	}
	if names := list(t, dir); len(names) != 2 {
		t.Errorf("files %v", names)
	}
}

func TestOpenAtOnceMakesOneAuthority(t *testing.T) {
	dir, clock := filepath.Join(t.TempDir(), "ca"), newClock()
	roots := make([]*Roots, 8)
	var wg sync.WaitGroup
	for i := range roots {
		wg.Go(func() {
			a, err := openDir(dir, clock)
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = a.Roots()
		})
	}
	wg.Wait()
	for _, r := range roots[1:] {
		if !r.Certificates[0].Equal(roots[0].Certificates[0]) {
			t.Fatal("two authorities were made")
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	other := t.TempDir() + "/other"
	if _, err := openDir(other, newClock()); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		spoil func(t *testing.T, dir string, clock *testClock)
		want  []string // parts of the error
	}{
		{"key open to others", func(t *testing.T, dir string, _ *testClock) { chmod(t, dir+"/ca.key", 0o640) }, []string{"ca.key", "chmod 600", "0640"}},
		{"roots open to others", func(t *testing.T, dir string, _ *testClock) { chmod(t, dir+"/ca.crt", 0o644) }, []string{"ca.crt", "chmod 600"}},
		{"directory open to others", func(t *testing.T, dir string, _ *testClock) { chmod(t, dir, 0o755) }, []string{"chmod 700"}},
		{"key empty", func(t *testing.T, dir string, _ *testClock) { write(t, dir+"/ca.key", "") }, []string{"ca.key", "PEM", "backup", "rm "}},
		{"key garbage", func(t *testing.T, dir string, _ *testClock) { write(t, dir+"/ca.key", "\x00garbage") }, []string{"ca.key", "rm "}},
		{"key not DER", func(t *testing.T, dir string, _ *testClock) {
			write(t, dir+"/ca.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
		}, []string{"ca.key", "rm "}},
		{"key huge", func(t *testing.T, dir string, _ *testClock) {
			write(t, dir+"/ca.key", strings.Repeat("a", maxFileSize+1))
		}, []string{"64 KiB"}},
		{"key a FIFO", func(t *testing.T, dir string, _ *testClock) {
			os.Remove(dir + "/ca.key")
			if err := syscall.Mkfifo(dir+"/ca.key", 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"regular file"}},
		{"key missing", func(t *testing.T, dir string, _ *testClock) { os.Remove(dir + "/ca.key") }, []string{"ca.key", "missing", "backup"}},
		{"key of another", func(t *testing.T, dir string, _ *testClock) { copyFile(t, other+"/ca.key", dir+"/ca.key") }, []string{"belongs to ca.key"}},
		{"roots empty", func(t *testing.T, dir string, _ *testClock) { write(t, dir+"/ca.crt", "") }, []string{"ca.crt", "belongs to ca.key"}},
		{"roots garbage", func(t *testing.T, dir string, _ *testClock) { write(t, dir+"/ca.crt", "garbage") }, []string{"ca.crt", "PEM"}},
		{"roots truncated", func(t *testing.T, dir string, _ *testClock) { truncate(t, dir+"/ca.crt") }, []string{"ca.crt", "rm "}},
		{"too many roots", func(t *testing.T, dir string, _ *testClock) {
			content, _ := os.ReadFile(dir + "/ca.crt")
			write(t, dir+"/ca.crt", strings.Repeat(string(content), maxRoots+1))
		}, []string{"more than 8"}},
		{"root ended", func(_ *testing.T, _ string, clock *testClock) { clock.Advance(11 * 365 * 24 * time.Hour) }, []string{"ended on"}},
		{"clock before the root", func(_ *testing.T, _ string, clock *testClock) { clock.Advance(-24 * time.Hour) }, []string{"set the clock"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, clock := t.TempDir()+"/ca", newClock()
			if _, err := openDir(dir, clock); err != nil {
				t.Fatal(err)
			}
			tt.spoil(t, dir, clock)
			before := list(t, dir)
			_, err := openDir(dir, clock)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q has several lines", err)
			}
			if after := list(t, dir); fmt.Sprint(before) != fmt.Sprint(after) {
				t.Errorf("files were %v, are %v", before, after)
			}
		})
	}
	if _, err := Open(Config{Dir: other, TrustDomain: "else.local", Log: discard}); err == nil || !strings.Contains(err.Error(), "else.local") {
		t.Errorf("another trust domain: %v", err)
	}
}

// After a crash at any of the writes, Open finds an authority, and leaves that
// were signed before stay good.
func TestOpenAfterACrash(t *testing.T) {
	clock := newClock()
	t.Run("key without certificate", func(t *testing.T) {
		dir := t.TempDir() + "/ca"
		before, err := openDir(dir, clock)
		if err != nil {
			t.Fatal(err)
		}
		issued, err := before.Sign(newCSR(t, newKey(t), webID), webID, clock.Now())
		if err != nil {
			t.Fatal(err)
		}
		os.Remove(dir + "/ca.crt")
		after, err := openDir(dir, clock)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verify(issued.Chain, after.Roots(), clock.Now()); err != nil {
			t.Error(err)
		}
	})
	t.Run("prepared key without certificate", func(t *testing.T) {
		dir := t.TempDir() + "/ca"
		if _, err := openDir(dir, clock); err != nil {
			t.Fatal(err)
		}
		content, err := encodeKey(newKey(t))
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir+"/next.key", string(content))
		a, err := openDir(dir, clock)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Promote(); err == nil {
			t.Error("promoted a key that nobody trusts")
		}
		if _, err := a.Prepare(); err != nil {
			t.Error(err)
		}
		if err := a.Promote(); err != nil {
			t.Error(err)
		}
	})
}

// failingDisk fails the nth write with err, after half of the bytes.
func failingDisk(n int, err error) func(*os.File, []byte) error {
	return func(f *os.File, b []byte) error {
		if n--; n == 0 {
			f.Write(b[:len(b)/2])
			return &fs.PathError{Op: "write", Path: f.Name(), Err: err}
		}
		return writeAll(f, b)
	}
}

func TestFullDiskLeavesNothingBehind(t *testing.T) {
	for n := 1; n <= 2; n++ {
		dir := filepath.Join(t.TempDir(), "ca")
		config := Config{Dir: dir, TrustDomain: testDomain, Log: discard}
		_, err := open(config, &store{dir: dir, write: failingDisk(n, syscall.ENOSPC)})
		want := "write " + filepath.Join(dir, []string{keyFile, rootsFile}[n-1]) + ": no space left on device: nothing was changed; free some space"
		if !errors.Is(err, syscall.ENOSPC) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("write %d: %v, want %q", n, err, want)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("write %d: left %v behind", n, list(t, dir))
		}
		if _, err := Open(config); err != nil {
			t.Errorf("write %d: afterwards: %v", n, err)
		}
	}
}

func TestFullDiskKeepsARotationWhole(t *testing.T) {
	clock := newClock()
	for n := 3; n <= 4; n++ { // the two writes of Prepare
		dir := filepath.Join(t.TempDir(), "ca")
		config := Config{Dir: dir, TrustDomain: testDomain, Now: clock.Now, Log: discard}
		a, err := open(config, &store{dir: dir, write: failingDisk(n, syscall.ENOSPC)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Prepare(); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("write %d: %v", n, err)
		}
		if len(a.Roots().Certificates) != 1 || a.Promote() == nil {
			t.Errorf("write %d: half a rotation took place", n)
		}
		if a, err = Open(config); err != nil || len(a.Roots().Certificates) != 1 {
			t.Errorf("write %d: afterwards: %v", n, err)
		}
	}
}

// The same with a file system that is really full: a tmpfs of one page in a
// mount namespace of this thread's own.
func TestFullFileSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	mountPoint := t.TempDir()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its namespace
		done <- func() error {
			if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
				return err
			}
			if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := syscall.Mount("tmpfs", mountPoint, "tmpfs", 0, "size=4k,mode=0700"); err != nil {
				return err
			}
			if _, err := Open(Config{Dir: mountPoint, TrustDomain: testDomain, Log: discard}); !errors.Is(err, syscall.ENOSPC) {
				return fmt.Errorf("got %w, want no space left on device", err)
			}
			entries, err := os.ReadDir(mountPoint)
			if len(entries) != 0 {
				err = fmt.Errorf("left %v behind", entries)
			}
			return errors.Join(err, syscall.Unmount(mountPoint, 0))
		}()
	}()
	err := <-done
	if errors.Is(err, syscall.EPERM) {
		t.Skip("may not mount here")
	}
	if err != nil {
		t.Error(err)
	}
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, string(content))
}

func truncate(t *testing.T, path string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, string(content[:len(content)/2]))
}

func chmod(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}
