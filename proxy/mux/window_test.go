package mux

import (
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// wire is one direction of a path: what is written arrives later.
type wire struct {
	delay time.Duration

	mu    sync.Mutex
	under []packet
	ended bool
	news  sync.Cond
}

type packet struct {
	at time.Time
	b  []byte
}

func newWire(delay time.Duration) *wire {
	w := &wire{delay: delay}
	w.news.L = &w.mu
	return w
}

func (w *wire) write(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.under = append(w.under, packet{time.Now().Add(w.delay), append([]byte(nil), p...)})
	w.news.Signal()
}

func (w *wire) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.news.Broadcast()
}

func (w *wire) read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.under) == 0 {
		if w.ended {
			return 0, io.EOF
		}
		w.news.Wait()
	}
	if wait := time.Until(w.under[0].at); wait > 0 {
		w.mu.Unlock()
		time.Sleep(wait)
		w.mu.Lock()
	}
	n := copy(p, w.under[0].b)
	if w.under[0].b = w.under[0].b[n:]; len(w.under[0].b) == 0 {
		w.under = w.under[1:]
	}
	return n, nil
}

// path is one end of two wires.
type path struct{ in, out *wire }

func (p path) Next(room, size int) (*tcp.Buffer, int, error) {
	buf := tcp.NewBuffer(size)
	n, err := p.in.read(buf.B[room:size])
	if err != nil {
		buf.Free()
		return nil, 0, err
	}
	return buf, n, nil
}

func (p path) Read(b []byte) (int, error)        { return p.in.read(b) }
func (p path) Offer(b []byte) (int, bool, error) { p.out.write(b); return len(b), true, nil }
func (p path) Write(b []byte) (int, error)       { p.out.write(b); return len(b), nil }
func (p path) CloseWrite() error                 { p.out.close(); return nil }
func (p path) Close() error                      { p.out.close(); p.in.close(); return nil }
func (p path) Reset()                            { _ = p.Close() }
func (p path) SetReadDeadline(time.Time) error   { return nil }
func (p path) SetWriteDeadline(time.Time) error  { return nil }

// sent sends size bytes on a stream over a path of a round trip that long, to a
// reader that rests after each read, and returns how long it took, how much of the
// peer's Growth was used, and how much of the stream was unread at most.
func sent(t *testing.T, size int, roundTrip, rest time.Duration, growth *Growth) (took time.Duration, used int64, unread int) {
	t.Helper()
	there, back := newWire(roundTrip/2), newWire(roundTrip/2)
	done, closed := make(chan struct{}), make(chan struct{})
	whole := growth.left.Load()
	dial := New(path{in: back, out: there}, Config{})
	accept := New(path{in: there, out: back}, Config{Growth: growth, Serve: toTheEnd(func(s *Stream) {
		defer close(closed)
		b := make([]byte, 16<<10)
		for left := size; left > 0; {
			n, err := s.Read(b)
			if err != nil {
				t.Error(err)
				break
			}
			left -= n
			s.mu.Lock()
			held := 0
			for _, c := range s.came {
				held += c.w - c.r
			}
			s.mu.Unlock()
			unread = max(unread, held)
			time.Sleep(rest)
		}
		used = whole - growth.left.Load()
		close(done)
		_ = s.Close()
	})})
	var running sync.WaitGroup
	running.Go(func() { _ = dial.Run() })
	running.Go(func() { _ = accept.Run() })
	begun := time.Now()
	s := dial.Open()
	if _, err := s.Write(make([]byte, size)); err != nil {
		t.Error(err)
	}
	<-done
	took = time.Since(begun)
	<-closed
	dial.t.Reset()
	running.Wait()
	if left := growth.left.Load(); left != whole {
		t.Errorf("of %d bytes of growth %d came back", whole, left)
	}
	return took, used, unread
}

// TestWindow: how fast a stream is on paths of several lengths, and what that costs.
func TestWindow(t *testing.T) {
	const size = 64 << 20
	for name, tt := range map[string]struct {
		size            int
		roundTrip, rest time.Duration
		growth          int64
		atMost          time.Duration
		used            [2]int64 // at least, at most
	}{
		// With the first window each of these would take a round trip per 128 KiB.
		"a continent": {size, 50 * time.Millisecond, 0, 64 << 20, 2 * time.Second, [2]int64{maxWindow - window, maxWindow - window}},
		"a city":      {size, 5 * time.Millisecond, 0, 64 << 20, time.Second, [2]int64{256 << 10, 1 << 20}},
		"a rack":      {size, 500 * time.Microsecond, 0, 64 << 20, time.Second, [2]int64{0, 0}},
		"no distance": {size, 0, 0, 64 << 20, time.Second, [2]int64{0, 0}},
		// What others have taken is not there.
		"no room":     {1 << 20, 50 * time.Millisecond, 0, 64 << 10, time.Second, [2]int64{0, 0}},
		"little room": {size / 4, 50 * time.Millisecond, 0, 1 << 20, 2 * time.Second, [2]int64{window, 1 << 20}},
		// 16 KiB in 10 ms are less than the first window in 50.
		"a slow reader": {size / 16, 50 * time.Millisecond, 10 * time.Millisecond, 64 << 20, time.Minute, [2]int64{0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				took, used, unread := sent(t, tt.size, tt.roundTrip, tt.rest, NewGrowth(tt.growth))
				if took > tt.atMost {
					t.Errorf("%d bytes took %v, more than %v", tt.size, took, tt.atMost)
				}
				if used < tt.used[0] || used > tt.used[1] {
					t.Errorf("the window has grown by %d, not by %d to %d", used, tt.used[0], tt.used[1])
				}
				if unread > window+int(used) {
					t.Errorf("%d bytes were unread", unread)
				}
				t.Logf("%d MB/s, the window has grown by %d KiB", tt.size/1e6*int(time.Second)/max(int(took), 1), used>>10)
			})
		})
	}
}

// TestWindowsOfALink: its streams share what they may grow by.
func TestWindowsOfALink(t *testing.T) {
	l := New(script{}, Config{Growth: NewGrowth(1 << 30)})
	var grown int64
	var all []*Stream
	for range MaxStreams {
		s := l.Open()
		for range 10 {
			s.in.grow(time.Second, l.growth, l.config.Growth)
		}
		grown += s.in.grown.Load()
		all = append(all, s)
	}
	if grown > linkGrowth || grown < linkGrowth/2 {
		t.Errorf("windows have grown by %d", grown)
	}
	for _, s := range all {
		_ = s.Close()
	}
	if left := l.config.Growth.left.Load(); left != 1<<30 || l.growth.left.Load() != linkGrowth {
		t.Errorf("%d and %d are left", left, l.growth.left.Load())
	}
}
