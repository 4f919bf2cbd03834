package tcp

import "testing"

func TestBufferSizes(t *testing.T) {
	for _, n := range []int{1, Small, Small + 1, Bulk, Bulk + 1, Large, Large + 1, Huge} {
		b := NewBuffer(n)
		if len(b.B) < n {
			t.Errorf("NewBuffer(%d) has %d bytes", n, len(b.B))
		}
		b.Free()
	}
	(*Buffer)(nil).Free()
}

// Peers that do not read must not make a proxy hold more and more.
func TestHugeBuffersAreBounded(t *testing.T) {
	var held []*Buffer
	for range hugeMost {
		held = append(held, NewBuffer(Huge))
	}
	for range 2 {
		b := NewBuffer(Huge)
		if len(b.B) != Large {
			t.Errorf("one more has %d bytes, want %d", len(b.B), Large)
		}
		b.Free()
	}
	held[0].Free()
	held[0] = NewBuffer(Huge)
	for i, b := range held {
		if len(b.B) != Huge {
			t.Errorf("buffer %d has %d bytes, want %d", i, len(b.B), Huge)
		}
		b.Free()
	}
}
