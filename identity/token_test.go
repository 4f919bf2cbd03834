package identity

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

func TestTokens(t *testing.T) {
	clock := newClock()
	tokens := NewTokens(TokenConfig{Now: clock.Now})
	issue := func() string {
		token, err := tokens.Issue(webID)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	refused := func(what, token string) {
		t.Helper()
		if id, err := tokens.Redeem(token); !errors.Is(err, ErrToken) || !id.IsZero() {
			t.Errorf("%s: %v, %v", what, id, err)
		} else if token != "" && strings.Contains(err.Error(), token) {
			t.Errorf("%s: the error, which is logged, contains the token", what)
		}
	}

	token := issue()
	if id, err := tokens.Redeem(token); id != webID || err != nil {
		t.Errorf("redeemed: %v, %v", id, err)
	}
	refused("used twice", token)

	token = issue()
	clock.Advance(defaultTokenLife - time.Second)
	if _, err := tokens.Redeem(token); err != nil {
		t.Errorf("a second before its end: %v", err)
	}
	token = issue()
	clock.Advance(defaultTokenLife)
	refused("at its end", token)
	refused("and again", token)

	token = issue()
	refused("empty", "")
	refused("never issued", strings.Repeat("A", 43))
	refused("too long", token+"A")
	refused("padded", token+"=")
	refused("a megabyte", strings.Repeat("A", 1<<20))
	// The last of 43 characters holds 2 bits more than the 32 bytes need.
	refused("another spelling of the same bytes", token[:42]+string(token[42]+1))
	if _, err := tokens.Redeem(token); err != nil {
		t.Errorf("after the attempts: %v", err)
	}
	if _, err := tokens.Issue(mesh.ID{}); err == nil {
		t.Error("issued a token for nobody")
	}
}

func TestTokensAreBounded(t *testing.T) {
	clock := newClock()
	tokens := NewTokens(TokenConfig{Now: clock.Now, Limit: 3, Life: time.Minute})
	for range 3 {
		if _, err := tokens.Issue(webID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tokens.Issue(webID); err == nil {
		t.Error("more than the limit")
	}
	clock.Advance(time.Minute)
	if _, err := tokens.Issue(webID); err != nil {
		t.Errorf("after the others' end: %v", err)
	}
	if n := len(tokens.pending); n != 1 {
		t.Errorf("%d are kept, want 1", n)
	}
}

func TestTokensKeepNoSecret(t *testing.T) {
	tokens := NewTokens(TokenConfig{})
	token, err := tokens.Issue(webID)
	if err != nil {
		t.Fatal(err)
	}
	for key := range tokens.pending {
		if strings.Contains(token, string(key[:])) || string(key[:]) == token[:32] {
			t.Error("the token itself is kept")
		}
	}
}

func TestTokenIsRedeemedOnce(t *testing.T) {
	tokens := NewTokens(TokenConfig{})
	token, err := tokens.Issue(webID)
	if err != nil {
		t.Fatal(err)
	}
	var redeemed atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := tokens.Redeem(token); err == nil {
				redeemed.Add(1)
			}
		})
	}
	wg.Wait()
	if n := redeemed.Load(); n != 1 {
		t.Errorf("redeemed %d times", n)
	}
}
