// What the parts of the system call interpreter share: tables of open files and mappings, tokens,
// replies. What does not live here: any system call under test.
#ifndef FIRSTLIGHT_TEST_INTERPRETER_H
#define FIRSTLIGHT_TEST_INTERPRETER_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// Where a path token points: `@NAME/rest` is relative to the open file NAME, `@NAME` is that file
// itself, anything else is relative to the working directory.
struct at {
  int fd;
  const char* path;
  bool empty;  // `@NAME`: the open file itself
};

struct command {
  const char* name;
  int least, most;  // arguments
  void (*run)(int argc, char** argv);
};

extern const struct command name_commands[], file_commands[], attribute_commands[],
    mapping_commands[];

// Replies. Each command gives exactly one line: `ok ...`, or the errno by name.
void reply(const char* format, ...) __attribute__((format(printf, 1, 2)));
void reply_errno(void);
// `ok` where the result of a call is not negative, else the errno.
void reply_result(long result);
// Short data as text, longer data as size and hash; the errno where `got` is negative.
void reply_data(const unsigned char* data, ssize_t got);
// Appends to the line under construction; `reply` ends it.
void append(const char* format, ...) __attribute__((format(printf, 1, 2)));
void append_bytes(const void* data, size_t bytes);  // %XX where not printable
void append_line(void);                             // ends a line of a reply of several lines

// A test that names what is not there is wrong: ends the program.
_Noreturn void bad(const char* what, const char* token);
struct at at_of(char* token);
// -1 where nothing is open under the name: the call under test then gives EBADF.
int fd_of(const char* name);
// Closes what was open under the name before.
void fd_keep(const char* name, int fd);
void fd_drop(const char* name);
long long number(const char* token);
// Octal.
unsigned mode_of(const char* token);
// `=text`, `hex:00ff`, or `SEED*BYTES` for bytes that only the seed decides; the caller frees it.
unsigned char* data_of(char* token, size_t* bytes);
uint64_t hash_of(uint64_t hash, const unsigned char* data, size_t bytes);
#define HASH_START UINT64_C(1469598103934665603)
// Whether a word stands among comma-separated ones.
bool has_word(const char* list, const char* word);

#endif
