package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

const (
	tokenBytes = 32

	// defaultTokenLife is the time from `tulle run` asking for a token to its
	// proxy using it: a proxy starts in a tenth of a second, a machine under
	// load may need much longer.
	defaultTokenLife = 60 * time.Second

	defaultTokenLimit = 4096
)

// ErrToken is wrapped by every error about a token that proves nothing.
var ErrToken = errors.New("join token refused")

// TokenConfig is what NewTokens needs; its zero value is fine.
type TokenConfig struct {
	Life  time.Duration    // how long a token may be used; 0: 60 s
	Limit int              // how many may be outstanding; 0: 4096
	Now   func() time.Time // the clock; nil: time.Now
}

// Tokens are the join tokens not used yet. A token proves one identity, once.
// Many goroutines may use them at once.
type Tokens struct {
	config TokenConfig

	mu sync.Mutex
	// By SHA-256 of the token: whoever reads our memory or times our lookups
	// learns nothing that could be redeemed. A plain hash does for 256 random bits.
	pending map[[sha256.Size]byte]grant
}

type grant struct {
	id      mesh.ID
	expires time.Time
}

// NewTokens returns an empty set of tokens.
func NewTokens(config TokenConfig) *Tokens {
	if config.Life == 0 {
		config.Life = defaultTokenLife
	}
	if config.Limit == 0 {
		config.Limit = defaultTokenLimit
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Tokens{config: config, pending: make(map[[sha256.Size]byte]grant)}
}

// Issue returns a new token that proves to be id.
func (t *Tokens) Issue(id mesh.ID) (string, error) {
	if err := id.Validate(); err != nil {
		return "", fmt.Errorf("issue a join token: %w", err)
	}
	var b [tokenBytes]byte
	rand.Read(b[:]) // never fails
	token := base64.RawURLEncoding.EncodeToString(b[:])
	now := t.config.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.pending) >= t.config.Limit {
		t.sweepLocked(now)
	}
	if len(t.pending) >= t.config.Limit {
		return "", fmt.Errorf("issue a join token: %d are waiting to be used; try again in %s", len(t.pending), t.config.Life)
	}
	t.pending[sha256.Sum256([]byte(token))] = grant{id: id, expires: now.Add(t.config.Life)}
	return token, nil
}

// Redeem uses a token up and returns who it proves the caller to be. Errors
// wrap ErrToken; what else they say is for the log, not for the caller.
func (t *Tokens) Redeem(token string) (mesh.ID, error) {
	if len(token) != base64.RawURLEncoding.EncodedLen(tokenBytes) {
		return mesh.ID{}, fmt.Errorf("%w: it has %d characters", ErrToken, len(token))
	}
	// The text is hashed, not what it decodes to: base64 has several spellings
	// of the same bytes.
	key := sha256.Sum256([]byte(token))
	now := t.config.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	g, ok := t.pending[key]
	delete(t.pending, key)
	switch {
	case !ok:
		return mesh.ID{}, fmt.Errorf("%w: unknown, or used already", ErrToken)
	case !now.Before(g.expires):
		return mesh.ID{}, fmt.Errorf("%w: that of %s ended %s ago", ErrToken, g.id, now.Sub(g.expires))
	}
	return g.id, nil
}

func (t *Tokens) sweepLocked(now time.Time) {
	for key, g := range t.pending {
		if !now.Before(g.expires) {
			delete(t.pending, key)
		}
	}
}
