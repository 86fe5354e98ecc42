/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blkdebug's configuration files: sections [inject-error] and [set-state] with lines KEY = "VALUE", comments behind #.
 * They become the options inject-error.N.KEY and set-state.N.KEY, behind those that were given as options.
 */
#include "blkdebug_rules.h"

#include <base/compiler.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct parse {
    const char *path;
    unsigned line;
    const char *section;  /* the one that we are in, or NULL */
    unsigned inject, set; /* rules so far, options included */
    struct opts *opts;
    struct error **errp;
};

static char *trimmed(char *text)
{
    text += strspn(text, " \t");
    size_t length = strlen(text);
    while (length > 0 && isspace((unsigned char)text[length - 1]))
        text[--length] = 0;
    return text;
}

static int fail(const struct parse *p, const char *what)
{
    return error_set(p->errp, -EINVAL, "%s:%u: %s", p->path, p->line, what);
}

static int begin_section(struct parse *p, const char *line)
{
    if (strcmp(line, "[inject-error]") == 0) {
        p->section = "inject-error";
        p->inject++;
    } else if (strcmp(line, "[set-state]") == 0) {
        p->section = "set-state";
        p->set++;
    } else {
        return error_set(p->errp, -EINVAL, "%s:%u: There is no option group '%s'", p->path, p->line, line);
    }
    return 0;
}

/* KEY = "VALUE" */
static int take_setting(struct parse *p, char *line)
{
    char *equals = strchr(line, '=');
    if (!equals)
        return fail(p, "parse error");
    *equals = 0;
    const char *key = trimmed(line);
    char *value = trimmed(equals + 1);
    size_t length = strlen(value);
    if (!*key || length < 2 || value[0] != '"' || value[length - 1] != '"')
        return fail(p, "parse error");
    if (!p->section)
        return fail(p, "no group defined");
    value[length - 1] = 0;
    unsigned number = strcmp(p->section, "set-state") == 0 ? p->set : p->inject;
    AUTO_FREE char *option = xasprintf("%s.%u.%s", p->section, number - 1, key);
    opts_set(p->opts, option, value + 1);
    return 0;
}

static int take_line(struct parse *p, char *line)
{
    line = trimmed(line);
    if (!*line || *line == '#')
        return 0;
    return *line == '[' ? begin_section(p, line) : take_setting(p, line);
}

/* Options PREFIX.0.…, PREFIX.1.…, as far as they go. */
static unsigned count_given(const struct opts *opts, const char *prefix)
{
    for (unsigned i = 0;; i++) {
        AUTO_FREE char *key = xasprintf("%s.%u", prefix, i);
        if (!opts_has_prefix(opts, key))
            return i;
    }
}

int blkdebug_config_read(const char *path, struct opts *opts, struct error **errp)
{
    struct parse p = { .path = path,
                       .inject = count_given(opts, "inject-error"),
                       .set = count_given(opts, "set-state"),
                       .opts = opts,
                       .errp = errp };
    char *line = NULL;
    size_t room = 0;
    int ret = 0;
    FILE *file = fopen(path, "re");

    if (!file)
        return error_set_errno(errp, -errno, "Could not read blkdebug config file");
    while (ret == 0 && getline(&line, &room, file) >= 0) {
        p.line++;
        ret = take_line(&p, line);
    }
    free(line);
    fclose(file);
    return ret;
}
