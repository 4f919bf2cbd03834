// Package dns answers a mesh's names to its workloads and hands every other
// question to the host's own resolvers.
//
// Who asks for NAME.mesh gets the address of a service or of one replica, or
// NXDOMAIN at once: a misspelt name must not wait for a timeout. A name that
// exists but has no record of the asked type gets an empty answer (RFC 2308
// section 2.2), since musl takes NXDOMAIN for AAAA as "no such name" for A too.
//
// Nothing is cached: mesh names are a map look-up, and the host's resolvers
// have caches of their own.
package dns
