package proxy

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Most workloads' proxies need a part of one processor, and two threads that
// share so little work mostly wake each other. So a proxy begins with one
// processor, and gets another one for as long as one isn't enough.
const (
	busyShare  = 0.8 // of its processors used: one more
	idleShare  = 0.6 // of one less used, for idleChecks in a row: one less
	idleChecks = 5
)

// processors decides how many the proxy may use at a time.
type processors struct {
	most int           // what the machine or the cgroup has
	n    int           // at present
	cpu  time.Duration // used when it was looked at last
	at   time.Duration // when that was
	used float64       // between the last two looks, in processors
	idle int           // checks in a row that found one too many
}

func newProcessors(now time.Duration) *processors {
	return &processors{most: runtime.GOMAXPROCS(1), n: 1, cpu: cpuTime(), at: now}
}

// close takes what there is.
func (p *processors) close() { runtime.GOMAXPROCS(p.most) }

// adjust is called about once a second.
func (p *processors) adjust(now time.Duration) {
	if before := p.n; p.decide(cpuTime(), now) != before {
		runtime.GOMAXPROCS(p.n) // stops the world for some microseconds
	}
}

// decide is told the CPU time used so far and returns how many there shall be.
func (p *processors) decide(cpu, now time.Duration) int {
	p.used = float64(cpu-p.cpu) / float64(max(now-p.at, 1))
	p.cpu, p.at = cpu, now
	switch {
	case p.used > busyShare*float64(p.n):
		p.n, p.idle = min(p.n+1, p.most), 0
	case p.used > idleShare*float64(p.n-1) || p.n == 1:
		p.idle = 0
	default:
		if p.idle++; p.idle == idleChecks {
			p.n, p.idle = p.n-1, 0
		}
	}
	return p.n
}

// cpuTime returns the CPU time that the process has used.
func cpuTime() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
