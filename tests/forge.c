/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/forge.h"

#include <vmferry/error.h>

#include <string.h>

#include "migration/session.h"
#include "ram/page-scan.h"
#include "stream/channel.h"
#include "stream/crc32c.h"

#define PAGE FORGE_PAGE

static const uint8_t session[16] = "forged session.";
static const uint8_t uuid[16] = {0xf0, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde};

/* ---- the guest ------------------------------------------------------------------------------------------------------------- */

static bool guest_stop(void *opaque, GError **error)
{
    ((ForgeGuest *)opaque)->running = false;
    return true;
}

static bool guest_start(void *opaque, GError **error)
{
    ForgeGuest *guest = opaque;

    guest->running = !guest->refuse_start;
    if (guest->refuse_start)
        g_set_error(error, VMF_ERROR, VMF_ERROR_GUEST, "it will not start");
    return !guest->refuse_start;
}

static bool guest_is_running(void *opaque)
{
    return ((ForgeGuest *)opaque)->running;
}

static const VmfGuestOps guest_ops = {
    .size = sizeof(VmfGuestOps), .stop = guest_stop, .start = guest_start, .is_running = guest_is_running};

static bool state_setup(void *opaque, GError **error)
{
    ((ForgeGuest *)opaque)->setups++;
    return true;
}

static bool state_load(void *opaque, uint32_t version, const uint8_t *data, size_t length, bool last, GError **error)
{
    if (length > 0 && data[0] == '!') {
        g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "not what it can be");
        return false;
    }
    return true;
}

static void state_cleanup(void *opaque)
{
    ((ForgeGuest *)opaque)->cleanups++;
}

static const VmfSaveHandlers state_handlers = {
    .size = sizeof(VmfSaveHandlers), .load_setup = state_setup, .load_state = state_load, .load_cleanup = state_cleanup};

static void add_ram(VmfGuest *guest, const char *name, unsigned pages, uint64_t address, VmfRamFlags flags)
{
    GError *error = NULL;
    VmfRamBlock *block = vmf_ram_block_new(name, (uint64_t)pages * PAGE, VMF_RAM_ANON, flags, address, &error);

    if (!block || !vmf_guest_add_ram(guest, block, NULL, &error))
        g_error("%s", error->message);
}

static void guest_init(ForgeGuest *guest)
{
    guest->guest = vmf_guest_new("forged", uuid, &guest_ops, guest);
    vmf_guest_set_property(guest->guest, "cpu", "forged-1");
    add_ram(guest->guest, "ram", FORGE_RAM_PAGES, 0x80000000, 0);
    add_ram(guest->guest, "rom", FORGE_ROM_PAGES, 0x1000, VMF_RAM_ROM);
    vmf_guest_add_handlers(guest->guest, "state", 0, 3, &state_handlers, guest, NULL);
    vmf_guest_add_handlers(guest->guest, "more", 7, 1, &state_handlers, guest, NULL);
}

/* ---- the target ------------------------------------------------------------------------------------------------------------ */

static void on_event(void *opaque, const char *id, const char *text)
{
    ForgeTarget *target = opaque;

    pthread_mutex_lock(&target->lock);
    g_string_append_printf(target->events, "%s: %s\n", id, text);
    target->n_events++;
    pthread_cond_broadcast(&target->changed);
    pthread_mutex_unlock(&target->lock);
    if (strcmp(id, "handover.held") == 0)
        vmf_session_cancel(target->session); /* leaves it held */
}

static const VmfSessionOps session_ops = {.size = sizeof(VmfSessionOps), .event = on_event};

static void *target_main(void *opaque)
{
    ForgeTarget *target = opaque;

    target->done = vmf_session_run(target->session, &target->error);
    return NULL;
}

ForgeTarget *forge_target_new(void)
{
    return forge_target_new_with(0, 0);
}

ForgeTarget *forge_target_new_with(int64_t handshake_ns, int64_t silence_ns)
{
    ForgeTarget *target = g_new0(ForgeTarget, 1);
    VmfParameters parameters;

    guest_init(&target->guest);
    target->events = g_string_new(NULL);
    pthread_mutex_init(&target->lock, NULL);
    pthread_cond_init(&target->changed, NULL);
    vmf_memory_link_new(0, &target->connector, &target->listener);
    vmf_parameters_init(&parameters);
    target->session = vmf_session_new_target(target->guest.guest, target->listener, &parameters, &session_ops, target);
    if (handshake_ns)
        target->session->handshake_ns = handshake_ns;
    if (silence_ns)
        target->session->silence_ns = silence_ns;
    pthread_create(&target->thread, NULL, target_main, target);
    return target;
}

void forge_target_await_events(ForgeTarget *target, unsigned n)
{
    pthread_mutex_lock(&target->lock);
    while (target->n_events < n)
        pthread_cond_wait(&target->changed, &target->lock);
    pthread_mutex_unlock(&target->lock);
}

void forge_target_finish(ForgeTarget *target, bool cancel)
{
    if (cancel)
        vmf_session_cancel(target->session);
    pthread_join(target->thread, NULL);
    target->statistics.size = sizeof(target->statistics);
    vmf_session_get_statistics(target->session, &target->statistics);
}

bool forge_target_is_empty(const ForgeTarget *target)
{
    for (unsigned b = 0; b < FORGE_BLOCKS; b++) {
        VmfRamBlock *block = vmf_guest_ram(target->guest.guest, b);
        const uint8_t *host = vmf_ram_block_host(block);
        for (uint64_t n = 0; n < vmf_ram_block_size(block); n++)
            if (host[n])
                return false;
    }
    return true;
}

void forge_target_free(ForgeTarget *target)
{
    vmf_session_free(target->session);
    vmf_connector_free(target->connector);
    vmf_listener_free(target->listener);
    vmf_guest_free(target->guest.guest);
    g_string_free(target->events, true);
    g_clear_error(&target->error);
    pthread_cond_destroy(&target->changed);
    pthread_mutex_destroy(&target->lock);
    g_free(target);
}

/* ---- the source ------------------------------------------------------------------------------------------------------------ */

static VmfStaticData *describe(void)
{
    VmfStaticData *data = vmf_static_data_new();
    VmfStaticBlock ram = {.name = "ram", .size = FORGE_RAM_PAGES * PAGE, .guest_address = 0x80000000, .page_size = PAGE};
    VmfStaticBlock rom = {
        .name = "rom", .flags = VMF_BLOCK_FLAG_ROM, .size = FORGE_ROM_PAGES * PAGE, .guest_address = 0x1000, .page_size = PAGE};

    g_strlcpy(data->machine.architecture, "forged", sizeof(data->machine.architecture));
    data->machine.page_size = PAGE;
    memcpy(data->machine.uuid, uuid, sizeof(uuid));
    vmf_static_data_add_property(data, "cpu", "forged-1");
    vmf_static_data_add_block(data, &ram);
    vmf_static_data_add_block(data, &rom);
    vmf_static_data_add_section(data, "state", 0, 3);
    vmf_static_data_add_section(data, "more", 7, 1);
    data->host = g_strdup("forger");
    data->features_offered = VMF_FEATURE_SUMS | VMF_FEATURE_ACKS | VMF_FEATURE_HINTS;
    data->features_required = VMF_FEATURE_SUMS | VMF_FEATURE_ACKS;
    return data;
}

/* A memory link turns away whom a full target has no place for; TCP would try again by itself. */
VmfChannel *forge_open(ForgeTarget *target)
{
    VmfChannel *channel = NULL;

    for (unsigned i = 0; i < 30000 && !channel; i++) {
        channel = vmf_connector_open(target->connector, -1, NULL);
        if (!channel)
            g_usleep(1000);
    }
    return channel;
}

ForgeSource *forge_source_new(ForgeTarget *target, VmfStreamFormat format)
{
    ForgeSource *source = g_new0(ForgeSource, 1);
    static const uint8_t token[VMF_TOKEN_SIZE] = "forger's token.";

    source->channel = forge_open(target);
    g_assert(source->channel);
    source->format = format;
    source->writer = vmf_record_writer_new(source->channel, format);
    source->reader = vmf_record_reader_new(source->channel, format);
    source->data = describe();
    source->told = g_strdup("");
    source->device_sum = XXH3_createState();
    XXH3_64bits_reset(source->device_sum);
    source->digests[0] = vmf_digest_table_new(FORGE_RAM_PAGES, NULL);
    source->digests[1] = vmf_digest_table_new(FORGE_ROM_PAGES, NULL);
    memcpy(source->switchover.token, token, sizeof(token));
    source->switchover.flags = VMF_SWITCHOVER_RUN;
    source->switchover.n_blocks = FORGE_BLOCKS;
    source->switchover.blocks = g_new0(VmfBlockSummary, FORGE_BLOCKS);
    vmf_record_writer_sum_begin(source->writer);
    source->summing = true;
    return source;
}

static void end_sum(ForgeSource *source)
{
    if (source->summing)
        source->switchover.static_sum = vmf_record_writer_sum_end(source->writer);
    source->summing = false;
}

void forge_source_free(ForgeSource *source)
{
    end_sum(source);
    vmf_record_writer_free(source->writer);
    vmf_record_reader_free(source->reader);
    vmf_channel_free(source->channel);
    vmf_static_data_free(source->data);
    vmf_switchover_clear(&source->switchover);
    XXH3_freeState(source->device_sum);
    for (unsigned c = 0; c < FORGE_CHANNELS; c++) {
        vmf_record_writer_free(source->page_writer[c]);
        vmf_channel_free(source->page[c]);
    }
    for (unsigned b = 0; b < FORGE_BLOCKS; b++)
        vmf_digest_table_free(source->digests[b]);
    g_free(source->told);
    g_free(source);
}

/* ---- anything -------------------------------------------------------------------------------------------------------------- */

void forge_record(ForgeSource *source, uint32_t type, const void *body, size_t length)
{
    vmf_record_write(source->writer, type, body, length, NULL);
}

void forge_octets(ForgeSource *source, const void *octets, size_t length)
{
    vmf_record_write_raw(source->writer, octets, length, NULL);
}

/* With a CRC that is right for a body of zeros. */
void forge_header(ForgeSource *source, uint32_t type, uint32_t length, uint32_t checked)
{
    VmfWireRecordHeader header = {type, length, checked, 0};
    g_autofree uint8_t *zeros = g_malloc0(MIN(checked, 1u << 20) + 1);

    if (source->format.swap) {
        header.type = __builtin_bswap32(type);
        header.length = __builtin_bswap32(length);
        header.checked = __builtin_bswap32(checked);
    }
    header.crc32c = vmf_crc32c(vmf_crc32c(0, &header, 12), zeros, MIN(checked, 1u << 20));
    if (source->format.swap)
        header.crc32c = __builtin_bswap32(header.crc32c);
    forge_octets(source, &header, sizeof(header));
}

void forge_pages(ForgeSource *source, const VmfWirePages *meta, unsigned n_payload)
{
    g_autofree uint8_t *payload = g_malloc((size_t)n_payload * PAGE + 1);
    struct iovec iov = {payload, (size_t)n_payload * PAGE};

    memset(payload, 0x77, (size_t)n_payload * PAGE);
    VmfRecordWriter *writer = source->page_writer[0] ? source->page_writer[0] : source->writer;
    vmf_record_write_pages(writer, meta, &iov, n_payload > 0, (size_t)n_payload * PAGE, NULL);
    vmf_record_flush(writer, NULL);
}

void forge_close(ForgeSource *source)
{
    vmf_channel_shutdown(source->channel);
}

/* ---- a good source --------------------------------------------------------------------------------------------------------- */

static bool write_image(ForgeSource *source)
{
    uint8_t wire[VMF_IMAGE_HEADER_SIZE];

    vmf_image_header_encode(&source->format, wire);
    return vmf_record_write_raw(source->writer, wire, sizeof(wire), NULL);
}

static bool write_machine(ForgeSource *source)
{
    uint8_t wire[VMF_MACHINE_HEADER_SIZE];

    vmf_machine_header_encode(&source->data->machine, source->format.swap, wire);
    return vmf_record_write_raw(source->writer, wire, sizeof(wire), NULL);
}

/* As version 2, which is without FEATURES and the end: those are steps of their own. */
static bool write_static(ForgeSource *source)
{
    uint32_t version = source->writer->format.version;

    source->writer->format.version = 2;
    bool done = vmf_static_data_write(source->data, source->writer, NULL) && vmf_record_flush(source->writer, NULL);
    source->writer->format.version = version;
    return done;
}

static bool write_features(ForgeSource *source)
{
    VmfPack pack = {g_byte_array_new(), source->format.swap};

    if (source->format.version < 3) {
        g_byte_array_unref(pack.bytes);
        return true;
    }
    vmf_pack_u64(&pack, source->data->features_offered);
    vmf_pack_u64(&pack, source->data->features_required);
    vmf_pack_u32(&pack, source->data->page_channels);
    vmf_pack_u32(&pack, 0);
    bool done = vmf_record_write(source->writer, VMF_RECORD_FEATURES, pack.bytes->data, pack.bytes->len, NULL);
    g_byte_array_unref(pack.bytes);
    return done;
}

static bool write_static_end(ForgeSource *source)
{
    bool done = source->format.version < 3 || vmf_record_write(source->writer, VMF_RECORD_STATIC_DATA_END, NULL, 0, NULL);

    end_sum(source);
    return done;
}

static bool write_page_channels(ForgeSource *source)
{
    VmfPageChannels message = {.count = source->n_pages, .epoch = 1};

    memcpy(message.session, session, sizeof(session));
    return vmf_page_channels_queue(source->writer, &message, NULL) && vmf_record_flush(source->writer, NULL);
}

/* ---- page channels --------------------------------------------------------------------------------------------------------- */

VmfPreamble forge_preamble(unsigned channel)
{
    VmfPreamble preamble = {.channel = channel, .epoch = 1};

    memcpy(preamble.session, session, sizeof(session));
    return preamble;
}

bool forge_join(ForgeSource *source, ForgeTarget *target, const VmfPreamble *preamble)
{
    VmfChannel *channel = forge_open(target);
    VmfRecordReader *reader = vmf_record_reader_new(channel, source->format);
    uint8_t wire[VMF_PREAMBLE_SIZE];
    VmfRecord record;

    vmf_preamble_encode(preamble, &source->format, wire);
    vmf_channel_write_all(channel, wire, sizeof(wire), NULL);
    bool joined = vmf_record_read(reader, &record, NULL) && record.type == VMF_RECORD_ACK;
    if (joined && preamble->channel < FORGE_CHANNELS && !source->page[preamble->channel]) {
        source->page[preamble->channel] = channel;
        source->page_writer[preamble->channel] = vmf_record_writer_new(channel, source->format);
    } else {
        vmf_channel_free(channel);
    }
    vmf_record_reader_free(reader);
    return joined;
}

static VmfRecordWriter *writer_of_pages(ForgeSource *source)
{
    return source->page_writer[0] ? source->page_writer[0] : source->writer;
}

static bool write_end_marks(ForgeSource *source)
{
    bool done = vmf_u64_send(writer_of_pages(source), VMF_RECORD_END_MARK, source->sequence, NULL);

    for (unsigned c = 1; done && c < source->n_pages; c++)
        done = vmf_u64_send(source->page_writer[c], VMF_RECORD_END_MARK, 0, NULL);
    return done;
}

static void fill(uint8_t page[PAGE], unsigned seed)
{
    for (unsigned n = 0; n < PAGE; n++)
        page[n] = (uint8_t)(seed * 17 + n + (n >> 8));
}

/* One record of the first pass: one page of data, and one of zeros or none. */
static bool send_pages(ForgeSource *source, unsigned block, uint64_t chunk, unsigned data, int zero)
{
    g_autofree uint8_t *memory = g_malloc(PAGE + 64);
    uint8_t *page = memory + 64 - (uintptr_t)memory % 64; /* where the scan wants it */
    VmfWirePages meta = {.block = block, .flags = VMF_PAGES_FIRST_PASS, .sequence = source->sequence, .chunk = chunk, .epoch = 1,
                         .n_data = 1};
    uint64_t digests[VMF_CHUNK_PAGES] = {0};
    struct iovec iov = {page, PAGE};
    VmfPageSet set = {0};

    fill(page, block * 100 + (unsigned)chunk * 10 + data);
    meta.data[data / 64] |= UINT64_C(1) << data % 64;
    if (zero >= 0)
        meta.zero[zero / 64] |= UINT64_C(1) << zero % 64;
    memcpy(set.words, meta.data, sizeof(set.words));
    digests[data] = vmf_page_scan_select()->digest(page, PAGE);
    vmf_digest_table_update(source->digests[block], chunk, &set, digests);
    source->switchover.blocks[block].data++;
    source->switchover.blocks[block].zero += zero >= 0;
    source->sequence++;
    return vmf_record_write_pages(writer_of_pages(source), &meta, &iov, 1, PAGE, NULL);
}

static bool write_pages(ForgeSource *source)
{
    return send_pages(source, 0, 0, 3, 5) && send_pages(source, 0, 1, 2, -1) && send_pages(source, 1, 0, 0, 1);
}

static bool write_state(ForgeSource *source)
{
    VmfSection parts[] = {
        {0, VMF_SECTION_FIRST, 0, (const uint8_t *)"some", 4},
        {1, VMF_SECTION_FIRST | VMF_SECTION_LAST, 0, (const uint8_t *)"", 0},
        {0, VMF_SECTION_LAST, 1, (const uint8_t *)"state", 5},
    };
    bool done = true;

    for (unsigned i = 0; done && i < G_N_ELEMENTS(parts); i++)
        done = vmf_section_queue(source->writer, &parts[i], source->device_sum, NULL);
    return done && vmf_record_flush(source->writer, NULL);
}

static bool write_switchover(ForgeSource *source)
{
    VmfSwitchover message = source->switchover;
    static const uint64_t n_pages[FORGE_BLOCKS] = {FORGE_RAM_PAGES, FORGE_ROM_PAGES};

    /* What a test put there is an offset to what is right. */
    message.device_sum += XXH3_64bits_digest(source->device_sum);
    for (unsigned b = 0; b < FORGE_BLOCKS; b++) {
        VmfBlockSummary *block = &message.blocks[b];
        block->hole += n_pages[b] - block->data - block->zero;
        block->sum += vmf_digest_table_total(source->digests[b]);
    }
    return vmf_switchover_send(source->writer, &message, NULL);
}

/* ---- what the target says -------------------------------------------------------------------------------------------------- */

static void note_complaint(ForgeSource *source, const VmfRecord *record)
{
    g_autofree char *id = NULL, *text = NULL;
    uint8_t token[VMF_TOKEN_SIZE];
    VmfVerdict verdict;

    switch (record->type) {
    case VMF_RECORD_VERDICT:
        if (vmf_verdict_decode(record, source->format.swap, &verdict, NULL)) {
            if (!verdict.accepted) {
                g_free(source->told);
                source->told = g_strdup(verdict.texts[0]);
            }
            vmf_verdict_clear(&verdict);
        }
        break;
    case VMF_RECORD_FAILED:
    case VMF_RECORD_REFUSED:
    case VMF_RECORD_NEVER:
        if (vmf_complaint_decode(record, source->format.swap, record->type == VMF_RECORD_FAILED ? NULL : token, &id, &text,
                                 NULL)) {
            g_free(source->told);
            source->told = g_steal_pointer(&id);
        }
        break;
    }
}

static bool await(ForgeSource *source, uint32_t type)
{
    VmfRecord record;

    do {
        if (!vmf_record_read(source->reader, &record, NULL))
            return false;
        note_complaint(source, &record);
    } while (record.type != type && !*source->told);
    return record.type == type && !*source->told;
}

bool forge_await_verdict(ForgeSource *source)
{
    return await(source, VMF_RECORD_VERDICT);
}

void forge_drain(ForgeSource *source)
{
    VmfRecord record;

    while (vmf_record_read(source->reader, &record, NULL))
        note_complaint(source, &record);
}

bool forge_step(ForgeSource *source, ForgeStep step)
{
    switch (step) {
    case FORGE_IMAGE:
        return write_image(source);
    case FORGE_MACHINE:
        return write_machine(source);
    case FORGE_STATIC:
        return write_static(source);
    case FORGE_FEATURES:
        return write_features(source);
    case FORGE_STATIC_END:
        return write_static_end(source);
    case FORGE_VERDICT:
        return source->format.version < 3 || await(source, VMF_RECORD_VERDICT);
    case FORGE_PAGE_CHANNELS:
        return write_page_channels(source);
    case FORGE_ROUND:
        return vmf_round_queue(source->writer, 1, 12288, NULL) && vmf_record_flush(source->writer, NULL);
    case FORGE_PAGES:
        return write_pages(source);
    case FORGE_STATE:
        return write_state(source);
    case FORGE_END_MARK:
        return write_end_marks(source);
    case FORGE_SWITCHOVER:
        return write_switchover(source);
    case FORGE_READY:
        return await(source, VMF_RECORD_READY);
    case FORGE_RUN:
        return vmf_token_send(source->writer, VMF_RECORD_RUN, source->switchover.token, NULL);
    case FORGE_RUNNING:
        return await(source, VMF_RECORD_RUNNING);
    case FORGE_END:
        return vmf_record_write(source->writer, VMF_RECORD_END, NULL, 0, NULL);
    default:
        return false;
    }
}

bool forge_all(ForgeSource *source)
{
    bool good = true;

    for (ForgeStep step = 0; good && step < FORGE_STEPS; step++)
        good = forge_step(source, step);
    return good;
}

void forge_play(ForgeSource *source, const ForgeRow *row)
{
    bool good = true;

    for (ForgeStep step = 0; good && step < FORGE_STEPS; step++) {
        if (step == row->step && row->when != FORGE_AFTER)
            row->plant(source);
        if (step != row->step || row->when != FORGE_INSTEAD)
            good = forge_step(source, step);
        if (step == row->step && row->when == FORGE_AFTER)
            row->plant(source);
    }
    if (!good && !*source->told)
        forge_drain(source);
}
