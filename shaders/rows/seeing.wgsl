// Which rows of a block see a range of its keys. What a row sees never begins or ends before what the row before it
// sees does: a search by halves finds the first that does not.
// Expects: Params, block_begin, block_end.
// Provides: first_ending_after, first_beginning_at: the first row of which the keys end after `key`, or begin at it or later;
// q_len if there is none.
fn first_ending_after(batch: u32, key: u32) -> u32 {
    var low = 0u;
    var high = params.q_len;
    while low < high {
        let middle = (low + high) / 2u;
        if block_end(batch, middle) > key { high = middle; } else { low = middle + 1u; }
    }
    return low;
}

fn first_beginning_at(batch: u32, key: u32) -> u32 {
    var low = 0u;
    var high = params.q_len;
    while low < high {
        let middle = (low + high) / 2u;
        if block_begin(batch, middle) >= key { high = middle; } else { low = middle + 1u; }
    }
    return low;
}
