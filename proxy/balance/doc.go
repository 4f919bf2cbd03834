// Package balance chooses the endpoint for a request or connection: the less
// loaded of two random ones (power of two choices), where
//
//	load = latency estimate x (in flight + 1)
//
// and the estimate is a peak-EWMA: a slower sample is believed at once, a
// faster one by and by, and with time alone the estimate decays, so that an
// endpoint that was slow or down is tried again.
//
//	ep := set.Pick(now, nil)       // counts as in flight from here on
//	if ep == nil { ... }           // nobody there
//	...
//	ep.End(now, firstByte, err == nil)
//
// The package is pure: time and randomness are passed in, nothing is started.
// Pick and End take no lock and allocate nothing; any number of goroutines may
// call them while another one updates the set. now is the time since any fixed
// moment, the same one for all calls; small steps back are harmless.
//
// Non-goals: health checks, locality, weights.
package balance
