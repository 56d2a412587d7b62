// Package configs turns what a person wrote into settings that need no
// further check.
//
// A setting has one name. It is a flag (--grpc-address), an environment
// variable (SALLYPORT_GRPC_ADDRESS) and a key of the settings file
// (grpc_address), and what is more particular wins: flag, environment, file,
// default. The command line parser fills Flags with what was given on the
// command line, and with nothing else; Load looks up the rest, validates, and
// returns Settings with one struct per running role. No other code reads the
// environment or the file, and no code after it asks whether a value is sane.
//
// With several roles in one process the tables [core], [proxy] and [gateway]
// of the file override its top-level keys. What can belong to one role only,
// a listening address or a join token, is never shared between two: that is
// an error that names the tables.
//
// A mistake costs a person an hour when it is silent. So an unknown key is an
// error with its line and column and the nearest key there is; a flag for a
// role that does not run is an error; a variable that looks like a misspelt
// one is a warning; and every message says which setting, where it was
// written, and what to write instead. All mistakes are reported at once.
//
// For people who come from Defguard, the variables that its guide has for the
// certificates of gRPC ports (DEFGUARD_GRPC_CERT and others) are read after our
// own, each for the role that the guide gives it to.
//
// Secrets can be given as text, as the name of a file (--join-file,
// SALLYPORT_JOIN_FILE), or as "-", which asks; passphrases are read from files
// alone, that of the CA also from systemd's credentials. Print never shows one,
// and a Secret in Settings does not show itself.
package configs
