"""OpenVINO's int8 by NNCF, in the toolchain `nncf`: what it is given, what it does, and how it is started."""
