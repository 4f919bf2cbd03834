// Package dashboard gathers what the proxies report and shows it: as JSON and
// server-sent events under /api/v1, and as one page made from those.
//
// A Collector keeps, for each proxy and each kind of traffic it has, the exact
// total since it was first seen and the last two minutes cut into seconds.
// Percentiles come from merged histograms, never from averaged percentiles.
// The views (services, edges, replicas, proxies, identities) are functions of
// one snapshot of it, so they cannot disagree with each other.
//
// Each exchange is counted once: by its client's proxy, or, where the client
// has none, by its server's.
//
// Nothing here changes the mesh: the API answers GET only. What a workload can
// choose (names, paths) is data to every reader, never markup.
package dashboard
