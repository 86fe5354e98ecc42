/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The completion of zsh: a list of sub-commands, and for each of them what _arguments takes, one line a spelling. */
#include "completion.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Within single quotes, and with what ends a part of a specification escaped. */
static void print_escaped(const char *text)
{
    for (; *text; text++) {
        if (*text == '\'')
            fputs("'\\'", stdout);
        else if (strchr("[]:\\", *text))
            putchar('\\');
        putchar(*text);
    }
}

/* ":NAME:WHAT", doubled if it is optional. */
static void print_argument(const struct img_option *option)
{
    if (!option->argument)
        return;
    bool optional = option->argument[0] == '[', amend;
    bool keys = completion_wants_keys(option, &amend);
    char *words = completion_choices(option);

    printf("%s", optional ? "::" : ":");
    print_escaped(option->name ? option->name : option->argument);
    if (keys)
        printf(":_img-tool_%s", amend ? "changes" : "options");
    else if (*words)
        printf(":(%s)", words);
    else
        printf(":_files");
    free(words);
}

/* `end`: how the argument follows, "" or "=" or "=-" (in _arguments: only so). */
static void print_spelling(const char *name, const char *end, const struct img_option *option, const char *help,
                           bool argument)
{
    printf("                '*%s%s[", name, end);
    print_escaped(help);
    printf("]");
    if (argument)
        print_argument(option);
    printf("' \\\n");
}

static void print_option(const struct img_option *option, bool with_letter, const char *help)
{
    bool optional = option->argument && option->argument[0] == '[';
    char name[64];

    if (with_letter) {
        snprintf(name, sizeof(name), "-%c", option->value);
        print_spelling(name, option->argument && !optional ? "+" : "", option, help, !optional);
    }
    if (option->name) {
        snprintf(name, sizeof(name), "--%s", option->name);
        print_spelling(name, !option->argument ? "" : optional ? "=-" : "=", option, help, true);
    }
}

static void print_table(const struct img_option *options)
{
    const char *help = "";

    for (const struct img_option *option = options; option->value; option++) {
        if (option->help)
            help = option->help;
        print_option(option, img_option_has_letter(options, option), help);
    }
}

/* A function that completes a list key=value,... */
static void print_keys(bool amend)
{
    char *keys = completion_keys(NULL, amend);

    printf("_img-tool_%s()\n{\n    local -a keys=(%s)\n    _values -s , -S = key \"${keys[@]/%%/:value:}\"\n}\n\n",
           amend ? "changes" : "options", keys);
    free(keys);
}

static void print_commands(void)
{
    printf("    local -a commands=(\n");
    for (const struct img_command *command = img_commands(); command; command = command->next) {
        char *summary = completion_summary(command);
        printf("        '%s:", command->name);
        print_escaped(summary);
        printf("'\n");
        free(summary);
    }
    printf("    )\n");
}

void completion_print_zsh(void)
{
    printf("#compdef img-tool\n# Completion of img-tool for zsh, made by: img-tool completion zsh\n\n");
    print_keys(false);
    print_keys(true);
    printf("_img-tool()\n{\n");
    print_commands();
    printf(
        "    if ((CURRENT == 2)) && [[ $words[2] != -* ]]; then\n        _describe command commands\n        return\n"
        "    fi\n    if ((CURRENT > 2)); then\n        shift words\n        ((CURRENT--))\n    fi\n"
        "    case $words[1] in\n");
    for (const struct img_command *command = img_commands(); command; command = command->next) {
        printf("        %s)\n            _arguments \\\n", command->name);
        print_table(command->options);
        printf("                '*:file:_files'\n            ;;\n");
    }
    printf("        *)\n            _arguments \\\n");
    print_table(img_global_options);
    printf("                '*:file:_files'\n            ;;\n    esac\n}\n\n_img-tool \"$@\"\n");
}
