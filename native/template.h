// The read-only tree of one image as native holds it: the checked TOC, what has arrived of its
// contents, and where their files stand. Shared by every session that mounts the image.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "content_table.h"
#include "toc.h"
#include "unique_fd.h"

namespace firstlight {

/** Where a template's bytes stand; src/native/index.ts describes each field. */
struct TemplateOptions {
  std::string toc_path;
  std::string digests_path;
  std::string content_dir;
  std::string incoming_dir;
  std::string partial_prefix;
};

class Template {
 public:
  ~Template();
  /** On an error returns nullptr, with a positive errno (EBADMSG: the TOC is damaged) and what it
   * concerns. */
  static std::shared_ptr<Template> open(const TemplateOptions& options, int* error,
                                        std::string* what);

  /**
   * Goes on with the files of the image as they stand now: it may have been removed and fetched
   * again since. Opens and READs may be under way. 0, or a positive errno as of `open` with nothing
   * changed: ESTALE where the image has another TOC now.
   */
  int reopen(const TemplateOptions& options, std::string* what);

  const Toc& toc() const { return *toc_; }
  ContentTable& table() { return *table_; }

  /**
   * Opens the verified file of a RoLayer content. It may move from incoming/ to content/ at any
   * moment, so a miss in both is looked at once more. `error` is a positive errno; EIO where the
   * file's size is wrong.
   * @param at_once  only where no disk is waited for; any error then means: not at once
   */
  UniqueFd open_content(uint32_t content, int* error, bool at_once = false) const;
  /**
   * The file of a RoLayer content for a READ that names no handle: kept open for the next such READ
   * where `keep`, as one of kFilesMax, and of a quarter of the descriptors that this process may
   * have, through all templates. `error` and `at_once` as of `open_content`.
   */
  std::shared_ptr<const UniqueFd> shared_content(uint32_t content, bool keep, int* error,
                                                 bool at_once);
  static constexpr size_t kFilesMax = 128;
  /** Opens the file of a content that is still arriving, or the whole one where it is complete by
   * now. */
  UniqueFd open_arriving(uint32_t content, int* error) const;

 private:
  /** What is opened once, and asked all the time. */
  struct Places {
    UniqueFd digests;
    UniqueFd content_dir;
    UniqueFd incoming_dir;
  };

  Template() = default;
  static int open_places(const TemplateOptions& options, uint32_t contents, Places* places,
                         std::string* what);

  std::unique_ptr<Toc> toc_;
  std::unique_ptr<ContentTable> table_;
  std::string partial_prefix_;
  /** `reopen` changes what the numbers stand for, and no number. */
  Places places_;

  struct SharedFile {
    uint32_t content;
    /** ContentTable::epoch from before it was opened. */
    uint32_t epoch;
    std::shared_ptr<const UniqueFd> fd;
  };
  std::mutex files_lock_;
  std::list<SharedFile> files_;  // latest first
  std::unordered_map<uint32_t, std::list<SharedFile>::iterator> file_of_;
};

}  // namespace firstlight
