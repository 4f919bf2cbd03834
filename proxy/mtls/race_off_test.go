//go:build !race

package mtls

const raceDetector = false
