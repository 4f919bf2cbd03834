package proxy

import (
	"log/slog"
	"sync"
	"time"
)

// complaintsPerSecond is how many lines a second tell of one kind of trouble
// that others can cause at will.
const complaintsPerSecond = 10

// complaints logs trouble that others cause, a few lines a second of it, and
// then how many more there were: a flood of bad connections must not become a
// flood of log. The zero value is ready; many goroutines may use it.
type complaints struct {
	mu     sync.Mutex
	until  time.Time // the end of the present second
	lines  int       // logged in it
	unsaid int       // not logged in it
}

// warn logs message, or counts it.
func (c *complaints) warn(log *slog.Logger, message string, args ...any) {
	if c.mayLog(log, message) {
		log.Warn(message, args...)
	}
}

func (c *complaints) mayLog(log *slog.Logger, message string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if !now.Before(c.until) {
		c.until, c.lines = now.Add(time.Second), 0
	}
	if c.lines < complaintsPerSecond {
		c.lines++
		return true
	}
	if c.unsaid++; c.unsaid == 1 {
		time.AfterFunc(c.until.Sub(now), func() { c.sum(log, message) })
	}
	return false
}

// sum says how many lines were left out.
func (c *complaints) sum(log *slog.Logger, message string) {
	c.mu.Lock()
	n := c.unsaid
	c.unsaid = 0
	c.mu.Unlock()
	log.Warn(message+", and more of them", "times", n)
}
