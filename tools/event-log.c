/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/event-log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include <vmferry/error.h>

struct VmfEventLog {
    int fd; /* -1: stderr, whatever that is at the time: a daemon turns it to a file */
};

bool vmf_event_log_open(VmfEventLog **log, const char *target, GError **error)
{
    int fd = -1;

    *log = NULL;
    if (!target || !*target)
        return true;
    /* Nonblocking: a pipe that nobody reads is refused at once, and later loses lines rather than time. */
    if (strcmp(target, "-") != 0 && (fd = open(target, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600)) < 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "VMFERRY_LOG: %s: open: %s", target, g_strerror(errno));
        return false;
    }
    *log = g_new0(VmfEventLog, 1);
    (*log)->fd = fd;
    return true;
}

void vmf_event_log_free(VmfEventLog *log)
{
    if (!log)
        return;
    if (log->fd >= 0)
        close(log->fd);
    g_free(log);
}

static void append_printable(GString *line, const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text, -1);

    for (const char *c = valid; *c; c = g_utf8_next_char(c)) {
        gunichar character = g_utf8_get_char(c);
        g_string_append_unichar(line, g_unichar_isprint(character) ? character : '?');
    }
}

void vmf_event_log_write(VmfEventLog *log, const char *machine, const char *side, const char *id, const char *text)
{
    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    g_autofree char *time = g_date_time_format(now, "%Y-%m-%dT%H:%M:%S.%fZ");
    g_autoptr(GString) line = g_string_new(NULL);
    ssize_t written;

    if (!log)
        return;
    g_string_printf(line, "%s %s %s %s ", time, machine, side, id);
    append_printable(line, text);
    g_string_append_c(line, '\n');
    /* One call, so that lines of several machines do not mix in one file. */
    do {
        written = write(log->fd >= 0 ? log->fd : STDERR_FILENO, line->str, line->len);
    } while (written < 0 && errno == EINTR);
}
