//go:build race

package mtls

const raceDetector = true
