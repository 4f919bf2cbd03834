package mux

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// stuck is a transport to a peer that says nothing and, until it is let, reads
// nothing.
type stuck struct {
	let   chan struct{} // closed: it reads everything
	ended chan struct{}
	once  sync.Once

	mu    sync.Mutex
	taken []byte
	late  *time.Timer // the write deadline
}

func newStuck() *stuck { return &stuck{let: make(chan struct{}), ended: make(chan struct{})} }

func (t *stuck) Offer(p []byte) (int, bool, error) {
	select {
	case <-t.let:
		n, err := t.Write(p)
		return n, true, err
	default:
		return 0, false, nil
	}
}

func (t *stuck) Write(p []byte) (int, error) {
	select {
	case <-t.let:
		t.mu.Lock()
		defer t.mu.Unlock()
		t.taken = append(t.taken, p...)
		return len(p), nil
	case <-t.ended:
		return 0, net.ErrClosed
	}
}

func (t *stuck) Read([]byte) (int, error) { <-t.ended; return 0, io.EOF }

func (t *stuck) Next(int, int) (*tcp.Buffer, int, error) { <-t.ended; return nil, 0, io.EOF }

// CloseWrite has a last word to send, as TLS has.
func (t *stuck) CloseWrite() error {
	_, err := t.Write(nil)
	return err
}

func (t *stuck) Close() error { t.once.Do(func() { close(t.ended) }); return nil }

func (t *stuck) Reset() { _ = t.Close() }

func (t *stuck) SetReadDeadline(time.Time) error { return nil }

func (t *stuck) SetWriteDeadline(at time.Time) error {
	t.late = time.AfterFunc(time.Until(at), t.Reset)
	return nil
}

// fill makes l hold as much unsent as it takes before writers wait.
func fill(t *testing.T, l *Link) {
	t.Helper()
	for l.out == nil || len(l.out.b) <= maxOut {
		if _, err := l.Open().Write(make([]byte, maxPayload)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEndWhileWaiting ends a stream on which a writer waits for room on the link:
// it is told at once, and nothing follows the end.
func TestEndWhileWaiting(t *testing.T) {
	for name, end := range map[string]func(s *Stream){
		"CloseWrite": func(s *Stream) { _ = s.CloseWrite() },
		"Close":      func(s *Stream) { _ = s.Close() },
		"Reset":      func(s *Stream) { s.Reset() },
		"the peer's": func(s *Stream) { _ = s.receiveReset(reasonReset) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				peer := newStuck()
				l := New(peer, Config{})
				fill(t, l)
				s := l.Open()
				wrote := make(chan error, 1)
				go func() {
					_, err := s.Write([]byte("late"))
					wrote <- err
				}()
				synctest.Wait()
				select {
				case err := <-wrote:
					t.Fatalf("it did not wait: %v", err)
				default:
				}
				end(s)
				synctest.Wait()
				select {
				case err := <-wrote:
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
				default:
					t.Error("the writer was not told")
				}
				close(peer.let)
				synctest.Wait()
				if bytes.Contains(peer.taken, []byte("late")) {
					t.Error("something was sent behind the end")
				}
			})
		})
	}
}

// TestEndBehindData is TestEndWhileWaiting for a stream that the peer knows: it
// would take what comes behind FIN for a fault of the whole link.
func TestEndBehindData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peer := newStuck()
		l := New(peer, Config{})
		s := l.Open()
		if _, err := s.Write([]byte("first")); err != nil {
			t.Fatal(err)
		}
		fill(t, l)
		wrote := make(chan error, 1)
		go func() {
			_, err := s.Write([]byte("second"))
			wrote <- err
		}()
		synctest.Wait()
		_ = s.CloseWrite()
		if err := <-wrote; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		close(peer.let)
		synctest.Wait()
		finished := false
		for b := peer.taken; len(b) > 0; {
			h := parseHeader(b)
			b = b[headerLen+h.length:]
			if h.id != s.id {
				continue
			}
			if finished {
				t.Errorf("frame %d behind FIN", h.kind)
			}
			finished = h.kind == frameFIN
		}
		if !finished {
			t.Error("no FIN")
		}
	})
}

// TestLeaveUnread ends the accepting side of a link whose peer reads nothing, not
// even the goodbye.
func TestLeaveUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peer := newStuck()
		l := New(peer, Config{Serve: toTheEnd(func(*Stream) {})})
		ended := make(chan error)
		go func() { ended <- l.Run() }()
		l.mu.Lock()
		l.leaving, l.left = true, true // both have said so
		l.mu.Unlock()
		begun := time.Now()
		l.closeIfDone()
		<-ended
		if took := time.Since(begun); took > closePatience {
			t.Errorf("it took %v", took)
		}
	})
}
