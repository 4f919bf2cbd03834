package redirect

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel,bpfeb -cflags "-O2 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu" kernel ../../bpf/redirect.c
