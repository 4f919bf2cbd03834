// Package command is the shape of one command of the tulle CLI: a row in
// main's table, the outside world it is given, its flags, and how it tells of
// an error.
package command
