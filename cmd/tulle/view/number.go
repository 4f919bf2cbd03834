package view

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/tulle-mesh/tulle/dashboard"
)

func count(n uint64) string { return strconv.FormatUint(n, 10) }

func rate(rps float64) cell {
	if rps == 0 {
		return number("0", faint)
	}
	if rps < 9.95 {
		return number(strconv.FormatFloat(rps, 'f', 1, 64))
	}
	return number(strconv.FormatFloat(rps, 'f', 0, 64))
}

func latency(seconds *float64) cell {
	if seconds == nil {
		return number("")
	}
	return number(interval(*seconds))
}

// interval shows seconds with two or three significant digits.
func interval(seconds float64) string {
	us := seconds * 1e6
	switch {
	case us < 999.5:
		return fmt.Sprintf("%.0fµs", us)
	case us < 9950:
		return fmt.Sprintf("%.1fms", us/1e3)
	case us < 999_500:
		return fmt.Sprintf("%.0fms", us/1e3)
	}
	return fmt.Sprintf("%.1fs", us/1e6)
}

// percent never rounds up to 100: one failure in a million shows.
func percent(share *float64) string {
	switch {
	case share == nil:
		return ""
	case *share >= 1 || *share == 0:
		return fmt.Sprintf("%.0f%%", *share*100)
	}
	p := math.Floor(*share*1e4) / 100
	if p >= 99 {
		return fmt.Sprintf("%.2f%%", p)
	}
	return fmt.Sprintf("%.1f%%", p)
}

// success stands out when it is not complete.
func success(share *float64) cell {
	if share != nil && *share < 1 {
		return number(percent(share), bad)
	}
	return number(percent(share), good)
}

func failures(n uint64) cell {
	if n > 0 {
		return number(count(n), bad)
	}
	return number("0", faint)
}

func security(kind string) cell {
	switch kind {
	case "mtls":
		return word("mTLS", good)
	case "local":
		return word(kind, faint)
	}
	return word(kind, warning)
}

func size(n uint64) string {
	switch {
	case n == 0:
		return ""
	case n < 1<<10:
		return fmt.Sprintf("%dB", n)
	case n < 1<<20:
		return fmt.Sprintf("%.0fK", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1fM", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1fG", float64(n)/(1<<30))
}

// until says how long it is from now to an RFC 3339 time, and how that sounds.
func until(then string, now time.Time) (string, tone) {
	at, err := time.Parse(time.RFC3339, then)
	if err != nil {
		return "", faint
	}
	left := at.Sub(now)
	switch {
	case left <= 0:
		return "expired", bad
	case left < time.Hour:
		return duration(left), warning
	}
	return duration(left), plain
}

// ago says how long it is since an RFC 3339 time.
func ago(then string, now time.Time) string {
	at, err := time.Parse(time.RFC3339, then)
	if err != nil {
		return ""
	}
	return duration(max(now.Sub(at), 0)) + " ago"
}

// duration shows the two greatest units.
func duration(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

// figures are the columns that services, edges and replicas have in common.
func figures(f dashboard.Figures) []cell {
	return []cell{rate(f.RPS), success(f.Success), latency(f.P50), latency(f.P95), latency(f.P99)}
}

var figureHeads = []string{"RPS", "SUCCESS", "P50", "P95", "P99"}
