// Package dashboard gathers what the proxies report and shows it: as JSON and
// server-sent events under /api/v1, and as a page made from those.
//
// Proxies stream cumulative figures; a Collector keeps, for each kind of a
// proxy's traffic, the exact total, and what it grew by in the slices of 5 s
// that may still be added to (record.go). When a slice is complete it becomes a
// column: what it added to each edge and replica, in one allocation (column.go).
// An hour of columns is the history (history.go), which files can keep over a
// restart (spool.go). All tables are functions of one snapshot, so they cannot
// disagree (snapshot.go, tables.go, views.go); series and heat maps come from
// the columns (timeline.go), or from a Prometheus (archive.go). Percentiles come
// from merged histograms, never from averaged percentiles.
//
// Each exchange is counted once: by its client's proxy, or, where the client
// has none, by its server's.
//
// Nothing here changes the mesh: the API answers GET only. What a workload can
// choose (names, paths) is data to every reader, never markup.
package dashboard
