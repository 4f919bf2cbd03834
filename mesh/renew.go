package mesh

import "time"

// RenewAt returns when to ask for the successor of a certificate: at about two
// thirds of its life, so that a third (8 h of 24) is left to retry in while the
// authority is away. jitter, from 0 to 1 and drawn anew for each certificate,
// spreads the proxies that started together over a tenth of the life.
func RenewAt(notBefore, notAfter time.Time, jitter float64) time.Time {
	if !(jitter >= 0) { // also NaN
		jitter = 0
	}
	life := max(notAfter.Sub(notBefore), 0)
	share := 2.0/3 + (min(jitter, 1)-0.5)/10
	return notBefore.Add(time.Duration(float64(life) * share))
}
